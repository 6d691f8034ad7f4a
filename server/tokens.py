"""Signed tokens (JWT, RFC 7519) for users: how they are made, and what makes one valid.

Only HS256 is spoken. python-jose would let a token without an end or an audience pass, so every claim is required by name.
"""

from __future__ import annotations

import re
import secrets
import time

from jose import JWTError, jwk, jwt

from config import ServeConfig, UserError
from server.addresses import is_loopback

ISSUER = "llm-server"  # who signs, and for whom
CLAIMS = ("exp", "iat", "sub", "iss", "aud")
SHORTEST_SECRET = 32  # bytes: what HS256 needs (RFC 7518, section 3.2)
EXAMPLES = re.compile("replace|change.?me|example|your.?secret|strong.?secret", re.IGNORECASE)


class InvalidToken(Exception):
    """A token that we did not sign, or that is over."""


class Tokens:
    """Makes and checks tokens.

    Args:
        secret: at least 32 bytes.
        minutes: how long a token lives.
    """

    def __init__(self, secret: str, minutes: float):
        self.key = jwk.construct(secret.encode(), "HS256")  # a plain string that looks like JSON would be parsed
        self.seconds = round(60 * minutes)

    def issue(self, user: str) -> str:
        now = int(time.time())
        claims = {"sub": user, "iat": now, "exp": now + self.seconds, "iss": ISSUER, "aud": ISSUER}
        return jwt.encode(claims, self.key, "HS256")

    def user_of(self, token: str) -> str:
        """Whose token it is.

        Raises:
            InvalidToken: for any other text.
        """
        options = {f"require_{claim}": True for claim in CLAIMS}
        try:
            claims = jwt.decode(token, self.key, ["HS256"], options=options, audience=ISSUER, issuer=ISSUER)
        except (JWTError, ValueError, RecursionError) as error:
            raise InvalidToken from error
        return claims["sub"]


def signing_secret(config: ServeConfig) -> tuple[str, str]:
    """The secret that tokens are signed with, and what to tell the person who starts the server.

    On this machine a missing, short or example secret is replaced for this run; where others reach the server it is refused.

    Raises:
        UserError: with the command that makes a good one.
    """
    wrong = weakness(config.jwt_secret)
    if not wrong:
        return config.jwt_secret, ""
    if is_loopback(config.host):
        return secrets.token_hex(32), f"LLM_JWT_SECRET {wrong}: tokens are signed with a random one, for this run only."
    raise UserError(f"LLM_JWT_SECRET {wrong}: set it to what this prints: openssl rand -hex 32")


def weakness(secret: str) -> str:
    """What is wrong with a secret, or nothing."""
    if not secret:
        return "is not set"
    if EXAMPLES.search(secret):
        return "is an example's"
    if len(secret.encode()) < SHORTEST_SECRET:
        return f"is shorter than {SHORTEST_SECRET} bytes"
    return ""
