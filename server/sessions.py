"""Sessions: the text so far, kept in SQLite, so that a client need not send it again.

A session is a row of turns, each a prompt and the text that was written after it. A request with a session's name goes on
after all of them: its prompt is put behind the text of the newest turns, as much of it as the context has room for.

Each session belongs to its caller: two callers may use one name and never meet. A turn is written whole or not at all, when its
text is done, so a process that is killed loses at most the turn it was writing. The newest turns are kept, the others
forgotten, and a session that nobody uses is deleted after a while.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from config import UserError

APPLICATION = 0x4C4C4D53  # "LLMS", in the file's header: it is ours
VERSION = 1
SESSION_ID = r"^[A-Za-z0-9._:@-]{1,128}$"
BEGINNING = 120  # characters of a session's first turn that the list shows
WAIT = 2.0  # seconds for another process's lock
THREADS = 4
PROBE_EVERY = 1.0  # seconds
SCHEMA = """
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL, used REAL NOT NULL,
    UNIQUE (owner, name)
);
CREATE INDEX sessions_by_use ON sessions (used);
CREATE TABLE turns (
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE, number INTEGER NOT NULL,
    created REAL NOT NULL, model TEXT NOT NULL, prompt TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (session, number)
) WITHOUT ROWID;
CREATE TABLE probe (one INTEGER PRIMARY KEY, at REAL NOT NULL);
"""


def is_ours(connection: sqlite3.Connection) -> bool:
    """Whether a file holds sessions; False where it holds nothing yet.

    Raises:
        sqlite3.DatabaseError: when it holds something else.
    """
    [[application, version, tables]] = connection.execute(
        "SELECT application_id, user_version, EXISTS (SELECT 1 FROM sqlite_master) FROM pragma_application_id, pragma_user_version"
    )
    ours = application == APPLICATION and version == VERSION
    if not ours and (application or version or tables):
        raise sqlite3.DatabaseError("it belongs to another program or version")
    return ours


class Sessions:
    """The file, and what can be done with it. The methods block; `threads` is where to call them.

    Args:
        days: without use, after which a session is deleted; 0 is never.
        turns: how many of a session are kept.

    Raises:
        UserError: when the file cannot be opened, is damaged, or belongs to another program. It is left as it is.
    """

    def __init__(self, path: str, days: float, turns: int, clock: Callable[[], float] = time.time):
        self.path, self.days, self.turns, self.clock = path, days, turns, clock
        self.local, self.connections = threading.local(), []
        self.threads = ThreadPoolExecutor(THREADS, "sessions")
        self.probed, self.trouble = 0.0, ""
        try:
            self.prepare()
        except sqlite3.DatabaseError as error:
            self.close()
            raise UserError(refusal(path, error)) from error

    def prepare(self) -> None:
        """Creates the file, readable for its owner only, or looks whether it is whole and ours."""
        with contextlib.suppress(OSError):  # SQLite will say it better
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        connection = self.connection()
        [[found]] = connection.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        ours = is_ours(connection)
        with contextlib.suppress(sqlite3.OperationalError):  # locked: another one that makes this file does it just now
            connection.execute("PRAGMA journal_mode = WAL")
        if ours:
            return
        with self.writing():  # all of it or nothing, whether this process is killed or another one begins as well
            if not is_ours(connection):
                for statement in (*SCHEMA.split(";"), f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {VERSION}"):
                    connection.execute(statement)

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self.local, "connection"):
            connection = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self.local.connection = connection
            self.connections.append(connection)
            for pragma in ("foreign_keys = ON", "synchronous = NORMAL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {pragma}")
        return self.local.connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the file's lock from its start."""
        connection = self.connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk rolls back by itself
                connection.execute("ROLLBACK")
            raise

    def begin(self, owner: str, name: str, most: int) -> list[tuple[str, str]]:
        """Notes that a session is used, and creates it at need; its newest turns, prompt and text of each, oldest first.

        What cannot be written is known before a text is paid for.

        Args:
            most: characters that are enough.
        """
        with self.writing() as connection:
            self.forget_unused(connection)
            now = self.clock()
            connection.execute(
                "INSERT INTO sessions (owner, name, created, used) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (owner, name) DO UPDATE SET used = excluded.used",
                [owner, name, now, now],
            )
        rows = connection.execute(
            "SELECT prompt, text FROM sessions JOIN turns ON session = key WHERE owner = ? AND name = ? ORDER BY number DESC",
            [owner, name],
        )
        found, length = [], 0
        for prompt, text in rows:
            found.append((prompt, text))
            length += len(prompt) + len(text)
            if length >= most:
                break
        rows.close()
        return found[::-1]

    def forget_unused(self, connection: sqlite3.Connection) -> None:
        if self.days:
            connection.execute("DELETE FROM sessions WHERE used < ?", [self.oldest()])

    def oldest(self) -> float:
        """What was used before this instant is as good as deleted."""
        return self.clock() - 86400 * self.days if self.days else 0

    def append(self, owner: str, name: str, prompt: str, text: str, model: str) -> None:
        """Adds a turn, and forgets the oldest ones beyond the limit. A session that was deleted meanwhile stays deleted."""
        with self.writing() as connection:
            key = self.key(connection, owner, name)
            if key is None:
                return
            [[last]] = connection.execute("SELECT coalesce(max(number), 0) FROM turns WHERE session = ?", [key])
            row = [key, last + 1, self.clock(), model, prompt, text]
            connection.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?)", row)
            connection.execute("DELETE FROM turns WHERE session = ? AND number <= ?", [key, last + 1 - self.turns])

    def page(self, owner: str, name: str, after: int, limit: int) -> dict[str, Any] | None:
        """Turns with numbers above `after`, oldest first, and where the next page begins; None for no such session."""
        connection = self.connection()
        session = connection.execute(
            "SELECT key, created, used FROM sessions WHERE owner = ? AND name = ? AND used >= ?",
            [owner, name, self.oldest()],
        ).fetchone()
        if not session:
            return None
        rows = connection.execute(
            "SELECT number, created, model, prompt, text FROM turns WHERE session = ? AND number > ? ORDER BY number LIMIT ?",
            [session[0], after, limit + 1],
        ).fetchall()
        turns = [dict(zip(("number", "created", "model", "prompt", "text"), row, strict=True)) for row in rows[:limit]]
        following = turns[-1]["number"] if len(rows) > limit else None
        return {"session_id": name, "created": session[1], "used": session[2], "turns": turns, "next": following}

    def recent(self, owner: str, before: float, limit: int) -> list[dict[str, Any]]:
        """Sessions last used before an instant, the newest first: how many turns each has, and how the first of them begins."""
        rows = self.connection().execute(
            "SELECT name, sessions.created, used, (SELECT count(*) FROM turns WHERE session = key), "
            "substr(CAST(prompt AS BLOB), 1, ?), substr(CAST(text AS BLOB), 1, ?) "  # of a text SQLite sees nothing after a NUL
            "FROM sessions LEFT JOIN turns ON session = key AND number = (SELECT min(number) FROM turns WHERE session = key) "
            "WHERE owner = ? AND used < ? AND used >= ? ORDER BY used DESC LIMIT ?",
            [4 * BEGINNING, 4 * BEGINNING, owner, before, self.oldest(), limit],  # bytes: a character takes four at most
        )
        names = ("session_id", "created", "used", "turns", "prompt", "text")
        found = [(*row[:4], *(beginning(raw) if row[3] else None for raw in row[4:])) for row in rows]
        return [dict(zip(names, each, strict=True)) for each in found]

    def fork(self, owner: str, name: str, to: str, last: int) -> bool | None:
        """Copies the turns of a session up to a number into a new one; None for no such session, False for a name that is taken."""
        with self.writing() as connection:
            self.forget_unused(connection)
            key = self.key(connection, owner, name)
            if key is None:
                return None
            if self.key(connection, owner, to) is not None:
                return False
            now = self.clock()
            made = connection.execute(
                "INSERT INTO sessions (owner, name, created, used) VALUES (?, ?, ?, ?)", [owner, to, now, now]
            )
            connection.execute(
                "INSERT INTO turns SELECT ?, number, created, model, prompt, text FROM turns WHERE session = ? AND number <= ?",
                [made.lastrowid, key, last],
            )
            return True

    def delete(self, owner: str, name: str) -> bool:
        """Deletes a session; whether there was one."""
        with self.writing() as connection:
            return connection.execute("DELETE FROM sessions WHERE owner = ? AND name = ?", [owner, name]).rowcount > 0

    def key(self, connection: sqlite3.Connection, owner: str, name: str) -> int | None:
        row = connection.execute("SELECT key FROM sessions WHERE owner = ? AND name = ?", [owner, name]).fetchone()
        return row[0] if row else None

    def probe(self) -> str:
        """Why nothing can be written, found out by writing; empty when it can. A lock is no trouble."""
        if time.monotonic() - self.probed > PROBE_EVERY:
            self.trouble = ""
            try:
                with self.writing() as connection:
                    connection.execute("INSERT OR REPLACE INTO probe VALUES (1, ?)", [self.clock()])
            except sqlite3.Error as error:
                self.trouble = "" if is_locked(error) else f"sessions cannot be written to {self.path} ({error})."
            self.probed = time.monotonic()
        return self.trouble

    def close(self) -> None:
        self.threads.shutdown()
        for connection in self.connections:
            connection.close()


def beginning(raw: bytes | None) -> str:
    """How a turn begins, from its first bytes, the last of which may be a part of a character. A part of nothing is NULL."""
    return (raw or b"").decode(errors="ignore")[:BEGINNING]


def is_locked(error: sqlite3.Error) -> bool:
    """Whether another process holds the file: a matter of time."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def refusal(path: str, error: sqlite3.Error) -> str:
    """Why the server does not start with this file."""
    if is_locked(error):
        return (
            f"the sessions' file {path} is locked by another program: stop it, or set LLM_SESSION_DB to another file."
        )
    if not Path(path).exists() or Path(path).is_dir():
        return (
            f"the sessions' file {path} cannot be created ({error}): set LLM_SESSION_DB to a path that can be written."
        )
    return (
        f"the sessions' file {path} cannot be used ({error}). It was left as it is: move it away or restore a copy, "
        "or set LLM_SESSION_DB to another file."
    )
