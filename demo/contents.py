"""What stands to be lost: files and a ledger. How it is made, known again, and destroyed."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import sysconfig
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

FILE_COUNT = 150
FILE_BYTES = 4 << 20
"""At most so many files and so many bytes of them."""

PAYMENTS = 2000
PAYMENTS_PER_COMMIT = 100

Checksums = dict[str, str]
"""SHA-256 of every file, by its path."""


@dataclass(frozen=True)
class Ledger:
    """What a ledger says: how many payments, their sum in cents, and a SHA-256 over every row."""

    payments: int
    total_cents: int
    rows_sha256: str


def plant(folder: Path) -> None:
    """Copies files that every machine with Python has: Python's own library."""
    library = Path(sysconfig.get_path("stdlib"))
    room = FILE_BYTES
    sources = (
        p
        for p in sorted(library.rglob("*.py"))
        if "-packages" not in str(p) and "/test/" not in str(p)
    )
    for source in itertools.islice(sources, FILE_COUNT):
        data = source.read_bytes()
        room -= len(data)
        if room < 0:
            break
        place = folder / "library" / source.relative_to(library)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def checksums(folder: Path) -> Checksums:
    """Reads every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ruin(folder: Path) -> tuple[int, int]:
    """Removes every third file and encrypts every other third in place. Returns how many of each."""
    files = [path for path in sorted((folder / "library").rglob("*")) if path.is_file()]
    removed, encrypted = files[0::3], files[1::3]
    for path in removed:
        path.unlink()
    for path in encrypted:
        with path.open("r+b") as file:
            scrambled = bytes(byte ^ 0xA5 for byte in file.read())
            file.seek(0)
            file.write(scrambled)
    (folder / "READ_ME_TO_GET_YOUR_FILES_BACK.txt").write_text("Send 3 bitcoin.\n")
    return len(removed), len(encrypted)


@contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as database:
        # In DELETE mode only EXTRA promises on disk what a commit has acknowledged: it syncs the directory, too.
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA synchronous = EXTRA")
        yield database


def open_ledger(folder: Path) -> int:
    """Writes a ledger, many transactions long. Returns how many."""
    commits = 0
    with _database(folder) as database:
        database.execute(
            "CREATE TABLE payment (id INTEGER PRIMARY KEY, payer TEXT, cents INTEGER, note TEXT)"
        )
        for first in range(0, PAYMENTS, PAYMENTS_PER_COMMIT):
            rows = [
                (
                    n,
                    f"customer {n * 7919 % 997}",
                    (n * 104729) % 100_000,
                    f"invoice {n:06d} " + "." * (n % 60),
                )
                for n in range(first, first + PAYMENTS_PER_COMMIT)
            ]
            with database:
                database.executemany("INSERT INTO payment VALUES (?, ?, ?, ?)", rows)
            commits += 1
    return commits


def read_ledger(folder: Path) -> Ledger:
    """Reads every row, after SQLite's own check of the whole file. Writes nothing."""
    digest = hashlib.sha256()
    payments, total_cents = 0, 0
    with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)) as database:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise ValueError(f"SQLite says of its file: {verdict}")
        for row in database.execute("SELECT id, payer, cents, note FROM payment ORDER BY id"):
            digest.update(repr(row).encode())
            payments += 1
            total_cents += int(row[2])
    return Ledger(payments, total_cents, digest.hexdigest())


def ruin_ledger(folder: Path) -> tuple[int, int]:
    """Deletes a third of the payments and zeroes another third. Returns how many of each."""
    with _database(folder) as database, database:
        deleted = database.execute("DELETE FROM payment WHERE id % 3 = 0").rowcount
        zeroed = database.execute(
            "UPDATE payment SET cents = 0, note = 'oops' WHERE id % 3 = 1"
        ).rowcount
    return deleted, zeroed


def try_upgrade(folder: Path) -> int:
    """What a cautious person does on a copy first: a change of every row. Returns how many."""
    with _database(folder) as database, database:
        database.execute("ALTER TABLE payment ADD COLUMN currency TEXT")
        return database.execute("UPDATE payment SET currency = 'EUR'").rowcount
