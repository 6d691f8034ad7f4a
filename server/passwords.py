"""Users and their passwords, which are kept as hashes only."""

from __future__ import annotations

import asyncio
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from config import UserError
from server.errors import ApiError
from server.limits import later

with warnings.catch_warnings():  # passlib asks for the standard library's crypt, which Python 3.13 no longer has
    warnings.simplefilter("ignore", DeprecationWarning)
    from passlib.context import CryptContext

ROUNDS = 600_000  # of PBKDF2 with SHA-256, as OWASP advises: about a quarter of a second
SCHEMES = ("pbkdf2_sha256", "pbkdf2_sha512", "sha512_crypt", "sha256_crypt")
HASHES = CryptContext(schemes=SCHEMES, pbkdf2_sha256__rounds=ROUNDS)
MOST_WAITING = 8  # passwords in line to be checked


class Passwords:
    """Checks passwords one at a time, on a thread of its own.

    Args:
        users: name to password or passlib hash. Plain passwords are hashed on the thread, before the first check.
    """

    def __init__(self, users: dict[str, str]):
        self.hashes = dict.fromkeys(users, "")
        self.waiting = 0
        self.thread = ThreadPoolExecutor(1, "passwords")
        self.thread.submit(self.hash_all, users)

    def hash_all(self, users: dict[str, str]) -> None:
        for name, secret in users.items():
            self.hashes[name] = secret if is_hash(secret) else HASHES.hash(secret)

    def knows(self, name: str) -> bool:
        return name in self.hashes

    async def check(self, name: str, password: str) -> bool:
        """Whether this is the user's password. It takes as long for a user who does not exist.

        Raises:
            ApiError: 429, when too many are in line.
        """
        if self.waiting >= MOST_WAITING:
            raise ApiError(429, "too many are logging in: come back in a moment.", "rate_limit_error", headers=later(2))
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, self.verify, name, password)
        finally:
            self.waiting -= 1

    def verify(self, name: str, password: str) -> bool:
        names = list(self.hashes)
        stand_in = names[zlib.crc32(name.encode(errors="replace")) % len(names)]  # the same one each time
        known = name in self.hashes
        try:
            return HASHES.verify(password, self.hashes[name if known else stand_in]) and known
        except ValueError:  # longer than 4,096 characters, or with a NUL: nobody's password
            return False


def is_hash(secret: str) -> bool:
    """Whether a text is a whole hash of a scheme that we check."""
    handler = HASHES.identify(secret, resolve=True)
    try:
        return handler is not None and bool(handler.from_string(secret).checksum)
    except ValueError:
        return False


def read_users(listed: str, file: str) -> dict[str, str]:
    """Users as `name:password,name:password`, and one a line in a file.

    Raises:
        UserError: naming the entry, never its password.
    """
    entries = [("LLM_USERS", number, entry) for number, entry in enumerate(listed.split(","), 1)]
    entries += [(file, number, line) for number, line in enumerate(lines_of(file), 1)] if file else []
    users: dict[str, str] = {}
    for source, number, entry in entries:
        if entry.strip():
            name, secret = read_user(source, number, entry.strip())
            if name in users:
                raise UserError(f"{source}: the user {name!r} is there twice: leave one out.")
            users[name] = secret
    if (listed or file) and not users:
        raise UserError("LLM_USERS or LLM_USERS_FILE is set, but names no user: write name:password, or unset it.")
    return users


def lines_of(file: str) -> list[str]:
    """The lines of the users' file; those that begin with # are comments."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UserError(f"LLM_USERS_FILE is {file!r}, which cannot be read ({reason}).") from error
    return ["" if line.startswith("#") else line for line in text.splitlines()]


def read_user(source: str, number: int, entry: str) -> tuple[str, str]:
    """One user: name, and password or hash."""
    name, _, secret = entry.partition(":")
    if not name or not secret:
        raise UserError(f"{source}: entry {number} is not a user: write it as name:password.")
    if secret.startswith("$") and not is_hash(secret):
        raise UserError(
            f"{source}: the password of {name!r} looks like a hash, but is none of {', '.join(SCHEMES)}: "
            "hash it with one of those, or take a password that does not begin with $."
        )
    return name, secret
