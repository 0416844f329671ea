"""The catalogue: what exists on this appliance, in SQLite. The journals hold the rest (volumes, bookmarks, images are theirs).

Groups and their exports are here; hosts (`host`), offload rules (`policy`) and redirections (`access`) keep their tables through
`transaction`. The file holds CHAP secrets, so nobody but its owner may read it.

Creating and deleting a group touches a directory and this file, which no crash does at once: so the row says `creating` before the
directory is made and `deleting` before it goes, and the next start finishes what it finds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playhead.errors import PlayheadError, conflict, not_found
from playhead.node import store_error

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
    """
    ALTER TABLE exports ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0 CHECK (read_only IN (0, 1));
    CREATE TABLE hosts (
        name TEXT PRIMARY KEY,
        created_ns INTEGER NOT NULL,
        chap_user TEXT,
        chap_secret TEXT,
        mutual_user TEXT,
        mutual_secret TEXT,
        CHECK ((chap_user IS NULL) = (chap_secret IS NULL)),
        CHECK ((mutual_user IS NULL) = (mutual_secret IS NULL)),
        CHECK (mutual_user IS NULL OR chap_user IS NOT NULL)
    ) STRICT;
    CREATE TABLE initiators (
        name TEXT PRIMARY KEY,
        host TEXT NOT NULL REFERENCES hosts (name) ON DELETE CASCADE
    ) STRICT;
    CREATE TABLE mappings (
        path TEXT NOT NULL,
        host TEXT NOT NULL REFERENCES hosts (name) ON DELETE CASCADE,
        lun INTEGER NOT NULL CHECK (lun BETWEEN 0 AND 255),
        read_only INTEGER NOT NULL CHECK (read_only IN (0, 1)),
        PRIMARY KEY (path, host)
    ) STRICT;
    CREATE TABLE offload_rules (
        lun TEXT,
        initiator TEXT,
        host TEXT REFERENCES hosts (name) ON DELETE CASCADE,
        offload TEXT NOT NULL CHECK (offload IN ('ats', 'xcopy', 'write-same', 'unmap', 'odx')),
        support INTEGER NOT NULL CHECK (support IN (0, 1)),
        CHECK (initiator IS NULL OR host IS NULL)
    ) STRICT;
    CREATE UNIQUE INDEX one_rule_per_scope ON offload_rules
        (ifnull(lun, ''), ifnull(initiator, ''), ifnull(host, ''), offload);
    CREATE TABLE discovery (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        chap_user TEXT NOT NULL,
        chap_secret TEXT NOT NULL,
        mutual_user TEXT,
        mutual_secret TEXT,
        CHECK ((mutual_user IS NULL) = (mutual_secret IS NULL))
    ) STRICT;
    CREATE TABLE redirections (
        iqn TEXT PRIMARY KEY,
        address TEXT NOT NULL,
        permanent INTEGER NOT NULL CHECK (permanent IN (0, 1))
    ) STRICT;
    """,
    """
    ALTER TABLE exports ADD COLUMN physical_block_bytes INTEGER NOT NULL DEFAULT 4096
        CHECK (physical_block_bytes IN (512, 4096));
    """,
    """
    CREATE TABLE arrays (
        name TEXT PRIMARY KEY,
        portals TEXT NOT NULL,
        initiator TEXT NOT NULL,
        names TEXT NOT NULL CHECK (names IN ('host', 'own')),
        digests INTEGER NOT NULL CHECK (digests IN (0, 1)),
        created_ns INTEGER NOT NULL,
        chap_user TEXT,
        chap_secret TEXT,
        mutual_user TEXT,
        mutual_secret TEXT,
        CHECK ((chap_user IS NULL) = (chap_secret IS NULL)),
        CHECK ((mutual_user IS NULL) = (mutual_secret IS NULL)),
        CHECK (mutual_user IS NULL OR chap_user IS NOT NULL)
    ) STRICT;
    CREATE TABLE fabric_volumes (
        group_name TEXT NOT NULL REFERENCES groups (name) ON DELETE CASCADE,
        volume TEXT NOT NULL,
        array TEXT NOT NULL REFERENCES arrays (name),
        target TEXT NOT NULL,
        lun INTEGER NOT NULL CHECK (lun BETWEEN 0 AND 16383),
        identity TEXT NOT NULL CHECK (identity IN ('own', 'new')),
        reads_zeros INTEGER NOT NULL CHECK (reads_zeros IN (0, 1)),
        PRIMARY KEY (group_name, volume),
        UNIQUE (array, target, lun)
    ) STRICT;
    """,
    """
    ALTER TABLE groups ADD COLUMN on_journal_failure TEXT NOT NULL DEFAULT 'stop'
        CHECK (on_journal_failure IN ('stop', 'track'));
    CREATE TABLE splitters (
        group_name TEXT NOT NULL,
        volume TEXT NOT NULL,
        kind TEXT NOT NULL,
        parameters TEXT NOT NULL,
        PRIMARY KEY (group_name, volume),
        FOREIGN KEY (group_name, volume) REFERENCES exports (group_name, volume) ON DELETE CASCADE
    ) STRICT;
    """,
    """
    ALTER TABLE groups ADD COLUMN directory TEXT;
    CREATE TABLE copies (
        group_name TEXT NOT NULL REFERENCES groups (name) ON DELETE CASCADE,
        name TEXT NOT NULL,
        directory TEXT NOT NULL UNIQUE,
        window_ns INTEGER,
        limit_bytes INTEGER,
        paused INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
        created_ns INTEGER NOT NULL,
        PRIMARY KEY (group_name, name)
    ) STRICT;
    CREATE TABLE copy_images (
        group_name TEXT NOT NULL,
        copy TEXT NOT NULL,
        image TEXT NOT NULL,
        PRIMARY KEY (group_name, image),
        FOREIGN KEY (group_name, copy) REFERENCES copies (group_name, name) ON DELETE CASCADE
    ) STRICT;
    """,
    """
    ALTER TABLE exports ADD COLUMN ublk INTEGER CHECK (ublk BETWEEN 0 AND 1048575);
    CREATE UNIQUE INDEX one_volume_per_block_device ON exports (ublk);
    """,
)
"""Migration n brings a catalogue from version n to n + 1. Never edited once released; only added to."""

VERSION = len(MIGRATIONS)
MAX_LUNS = 256
PHYSICAL_BLOCK_BYTES = 4096
"""Of a volume nobody said otherwise of: what the journal writes best."""

GroupState = Literal["creating", "ready", "deleting"]
OnJournalFailure = Literal["stop", "track"]


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
    on_journal_failure: OnJournalFailure = "stop"
    """What hosts of volumes whose production lives elsewhere get while the journal cannot be written."""
    directory: str | None = None
    """Where its journal is; None: in the store. A promoted copy stays where it is."""

    @property
    def limits(self) -> tuple[int | None, int | None, int]:
        """The policy, in the order in which it is passed on."""
        return self.window_ns, self.limit_bytes, self.reserve_bytes


@dataclass(frozen=True)
class Export:
    """How a volume is exported."""

    lun: int
    read_only: bool
    physical_block_bytes: int
    """What the volume calls a physical block: 512 for hosts that want native blocks, 4096 otherwise."""
    ublk: int | None = None
    """The N of the block device of this host, /dev/ublkbN, that it is too."""


@dataclass(frozen=True)
class SplitterRow:
    """Where a volume's production is, if it is not Playhead's own."""

    kind: Literal["host"]
    path: str
    """The file or block device of this host."""

    @property
    def where(self) -> str:
        """For people."""
        return self.path


def private(path: Path) -> None:
    """Makes the database its owner's alone, before anything secret is in it; SQLite gives its log the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            with contextlib.suppress(FileNotFoundError):
                file.chmod(0o600)
    except OSError as error:
        raise store_error(error, path, "the catalogue cannot be opened at") from error


class Catalogue:
    """An open catalogue. Its methods may be called from any thread; each is one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._errors():
            private(path)
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
        # A secret that was replaced must not linger in a free page.
        self._db.execute("PRAGMA secure_delete = ON")
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
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The database, for one transaction; each noun keeps its own tables with it."""
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
        with self.transaction() as db:
            rows = db.execute(
                "SELECT name, iqn, state, window_ns, limit_bytes, reserve_bytes, created_ns, on_journal_failure, directory"
                " FROM groups ORDER BY name"
            ).fetchall()
        return [GroupRow(*row) for row in rows]

    def add_group(self, row: GroupRow) -> None:
        with self.transaction() as db:
            try:
                db.execute(
                    "INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (row.name, row.iqn, row.state, *row.limits, row.created_ns, row.on_journal_failure, row.directory),
                )
            except sqlite3.IntegrityError as error:
                raise conflict(f"group {row.name} exists already", "choose another name") from error

    def set_group_state(self, name: str, state: GroupState) -> None:
        with self.transaction() as db:
            db.execute("UPDATE groups SET state = ? WHERE name = ?", (state, name))

    def set_policy(self, row: GroupRow) -> None:
        with self.transaction() as db:
            db.execute(
                "UPDATE groups SET window_ns = ?, limit_bytes = ?, reserve_bytes = ?, on_journal_failure = ? WHERE name = ?",
                (*row.limits, row.on_journal_failure, row.name),
            )

    def remove_group(self, name: str) -> None:
        with self.transaction() as db:
            db.execute("DELETE FROM groups WHERE name = ?", (name,))

    def exports(self, group: str) -> dict[str, Export]:
        """How each of a group's volumes is exported."""
        with self.transaction() as db:
            rows = db.execute(
                "SELECT volume, lun, read_only, physical_block_bytes, ublk FROM exports WHERE group_name = ? ORDER BY lun",
                (group,),
            ).fetchall()
        return {volume: Export(lun, bool(read_only), block, ublk) for volume, lun, read_only, block, ublk in rows}

    def add_export(self, group: str, volume: str, physical_block_bytes: int = PHYSICAL_BLOCK_BYTES) -> Export:
        """Gives a volume the lowest free LUN number, or the one it has. A number that a mapping uses in the group is not free: a host
        would find two volumes behind it.
        """
        with self.transaction() as db:
            own = dict(db.execute("SELECT volume, lun FROM exports WHERE group_name = ?", (group,)).fetchall())
            if volume in own:
                return Export(int(own[volume]), False, physical_block_bytes)
            mapped = db.execute("SELECT lun FROM mappings WHERE path GLOB ?", (f"{group}/*",)).fetchall()
            taken = {*own.values(), *(lun for (lun,) in mapped)}
            free = next((n for n in range(MAX_LUNS) if n not in taken), None)
            if free is None:
                raise conflict(
                    f"group {group} has {MAX_LUNS} volumes, as many as a target has LUNs", "use another group"
                )
            if not db.execute("SELECT 1 FROM groups WHERE name = ?", (group,)).fetchone():
                raise not_found(f"there is no group {group}")
            db.execute(
                "INSERT INTO exports (group_name, volume, lun, physical_block_bytes) VALUES (?, ?, ?, ?)",
                (group, volume, free, physical_block_bytes),
            )
            return Export(free, False, physical_block_bytes)

    def set_read_only(self, group: str, volume: str, read_only: bool) -> None:
        with self.transaction() as db:
            db.execute(
                "UPDATE exports SET read_only = ? WHERE group_name = ? AND volume = ?", (read_only, group, volume)
            )

    def claim_ublk(self, group: str, volume: str, taken: Collection[int]) -> int:
        """Gives a volume the lowest number of a block device that no volume has and that is not `taken`."""
        with self.transaction() as db:
            known = {ublk for (ublk,) in db.execute("SELECT ublk FROM exports WHERE ublk IS NOT NULL")}
            free = next(n for n in range(len(known) + len(taken) + 1) if n not in known and n not in taken)
            db.execute("UPDATE exports SET ublk = ? WHERE group_name = ? AND volume = ?", (free, group, volume))
            return free

    def release_ublk(self, group: str, volume: str) -> None:
        with self.transaction() as db:
            db.execute("UPDATE exports SET ublk = NULL WHERE group_name = ? AND volume = ?", (group, volume))

    def splitters(self, group: str) -> dict[str, SplitterRow]:
        """The group's volumes whose production lives elsewhere."""
        with self.transaction() as db:
            rows = db.execute(
                "SELECT volume, kind, parameters FROM splitters WHERE group_name = ? ORDER BY volume", (group,)
            ).fetchall()
        return {volume: SplitterRow(kind, **json.loads(parameters)) for volume, kind, parameters in rows}

    def set_splitter(self, group: str, volume: str, row: SplitterRow) -> None:
        """Says where the production of an exported volume is."""
        with self.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO splitters VALUES (?, ?, ?, ?)",
                (group, volume, row.kind, json.dumps({"path": row.path})),
            )

    def remove_splitter(self, group: str, volume: str) -> None:
        """The volume is Playhead's own from now on."""
        with self.transaction() as db:
            db.execute("DELETE FROM splitters WHERE group_name = ? AND volume = ?", (group, volume))

    def remove_export(self, group: str, volume: str) -> None:
        with self.transaction() as db:
            db.execute("DELETE FROM exports WHERE group_name = ? AND volume = ?", (group, volume))
