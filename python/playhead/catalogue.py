"""The catalogue: what exists on this appliance, in SQLite. The journals hold the rest (volumes, bookmarks, images are theirs).

Creating and deleting a group touches a directory and this file, which no crash does at once: so the row says `creating` before the
directory is made and `deleting` before it goes, and the next start finishes what it finds.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playhead.errors import PlayheadError, conflict, not_found

MIGRATIONS = (
    """
    CREATE TABLE groups (
        name TEXT PRIMARY KEY,
        iqn TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
        window_ns INTEGER,
        limit_bytes INTEGER,
        reserve_bytes INTEGER NOT NULL,
        created_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE exports (
        group_name TEXT NOT NULL REFERENCES groups (name) ON DELETE CASCADE,
        volume TEXT NOT NULL,
        lun INTEGER NOT NULL CHECK (lun BETWEEN 0 AND 255),
        PRIMARY KEY (group_name, volume),
        UNIQUE (group_name, lun)
    ) STRICT;
    """,
)
"""Migration n brings a catalogue from version n to n + 1. Never edited once released; only added to."""

VERSION = len(MIGRATIONS)
MAX_LUNS = 256

GroupState = Literal["creating", "ready", "deleting"]


@dataclass(frozen=True)
class GroupRow:
    """A group as the catalogue knows it."""

    name: str
    iqn: str
    state: GroupState
    window_ns: int | None
    limit_bytes: int | None
    reserve_bytes: int
    created_ns: int

    @property
    def limits(self) -> tuple[int | None, int | None, int]:
        """The policy, in the order in which it is passed on."""
        return self.window_ns, self.limit_bytes, self.reserve_bytes


class Catalogue:
    """An open catalogue. Its methods may be called from any thread; each is one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._errors():
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
            try:
                self._migrate()
            except BaseException:
                self._db.close()
                raise

    def _migrate(self) -> None:
        found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if found > VERSION:
            raise PlayheadError(
                "newer-format",
                f"catalogue {self._path} has version {found}; this Playhead reads up to {VERSION}",
                "use a Playhead at least as new as the one that wrote it; nothing was changed",
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        # A group that was said to exist must exist after power loss too.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        for version in range(found, VERSION):
            self._db.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;"
            )

    def close(self) -> None:
        with self._lock, self._errors():
            self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's words, in ours."""
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            if name == "SQLITE_FULL":
                raise PlayheadError(
                    "no-space", f"catalogue {self._path}: {error}", "make room on that file system"
                ) from error
            if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
                raise PlayheadError(
                    "damaged",
                    f"catalogue {self._path}: {error}",
                    "restore it from a backup; the journals are untouched",
                ) from error
            raise PlayheadError("io", f"catalogue {self._path}: {error}", "look at that file system") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                # After some errors (a full disk) SQLite has rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def groups(self) -> list[GroupRow]:
        """Every group, by name."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT name, iqn, state, window_ns, limit_bytes, reserve_bytes, created_ns FROM groups ORDER BY name"
            ).fetchall()
        return [GroupRow(*row) for row in rows]

    def add_group(self, row: GroupRow) -> None:
        with self._transaction() as db:
            try:
                db.execute(
                    "INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (row.name, row.iqn, row.state, row.window_ns, row.limit_bytes, row.reserve_bytes, row.created_ns),
                )
            except sqlite3.IntegrityError as error:
                raise conflict(f"group {row.name} exists already", "choose another name") from error

    def set_group_state(self, name: str, state: GroupState) -> None:
        with self._transaction() as db:
            db.execute("UPDATE groups SET state = ? WHERE name = ?", (state, name))

    def set_policy(self, name: str, window_ns: int | None, limit_bytes: int | None, reserve_bytes: int) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE groups SET window_ns = ?, limit_bytes = ?, reserve_bytes = ? WHERE name = ?",
                (window_ns, limit_bytes, reserve_bytes, name),
            )

    def remove_group(self, name: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM groups WHERE name = ?", (name,))

    def exports(self, group: str) -> dict[str, int]:
        """LUN number of each exported volume."""
        with self._transaction() as db:
            return dict(
                db.execute("SELECT volume, lun FROM exports WHERE group_name = ? ORDER BY lun", (group,)).fetchall()
            )

    def add_export(self, group: str, volume: str) -> int:
        """Gives a volume the lowest free LUN number, or the one it has."""
        with self._transaction() as db:
            taken = dict(db.execute("SELECT volume, lun FROM exports WHERE group_name = ?", (group,)).fetchall())
            if volume in taken:
                return int(taken[volume])
            free = next((n for n in range(MAX_LUNS) if n not in taken.values()), None)
            if free is None:
                raise conflict(
                    f"group {group} has {MAX_LUNS} volumes, as many as a target has LUNs", "use another group"
                )
            if not db.execute("SELECT 1 FROM groups WHERE name = ?", (group,)).fetchone():
                raise not_found(f"there is no group {group}")
            db.execute("INSERT INTO exports VALUES (?, ?, ?)", (group, volume, free))
            return free

    def remove_export(self, group: str, volume: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM exports WHERE group_name = ? AND volume = ?", (group, volume))
