"""Hosts: the initiators of one machine or cluster, what it proves itself with, and which LUNs are mapped to it.

An initiator belongs to one host at most, so that what it sees and may do is never a matter of order. A secret goes into the catalogue and
to the front end, and nowhere else: not into answers, not into the log.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from playhead import names
from playhead.catalogue import MAX_LUNS, Catalogue
from playhead.errors import conflict, invalid, not_found
from playhead.policy import no_host

MIN_SECRET_BYTES = 12
"""96 bits (RFC 7143 9.2.1)."""

MAX_SECRET_BYTES = 255
MAX_USER_BYTES = 255
MAX_INITIATORS = 256
"""Of one host."""


@dataclass(frozen=True)
class Chap:
    """What one side proves itself with (RFC 1994), and, if it asks for that, what the target proves itself with."""

    user: str
    secret: str = field(repr=False)
    mutual_user: str | None = None
    mutual_secret: str | None = field(default=None, repr=False)

    @property
    def native(self) -> tuple[str, bytes, str | None, bytes | None]:
        mutual = self.mutual_secret.encode() if self.mutual_secret is not None else None
        return self.user, self.secret.encode(), self.mutual_user, mutual

    @property
    def row(self) -> tuple[str, str, str | None, str | None]:
        """As the catalogue keeps it."""
        return self.user, self.secret, self.mutual_user, self.mutual_secret

    def contradicts(self, other: Chap) -> bool:
        """Whether one's secret is the other's in the opposite direction: an initiator could have the target answer for another."""
        return self.secret == other.mutual_secret or self.mutual_secret == other.secret


@dataclass(frozen=True)
class HostRow:
    """A host as the catalogue knows it."""

    name: str
    created_ns: int
    initiators: tuple[str, ...]
    chap: Chap | None


@dataclass(frozen=True)
class Mapping:
    """A disk as one host sees it."""

    path: str
    host: str
    lun: int
    read_only: bool


def check_chap(
    whose: str, user: str, secret: str, mutual_user: str | None = None, mutual_secret: str | None = None
) -> Chap:
    """Credentials that can be used; refuses what the standard calls too weak."""
    _check_user(whose, user)
    _check_secret(whose, secret, "its secret")
    if (mutual_user is None) != (mutual_secret is None):
        raise invalid(f"{whose}: mutual CHAP wants both a user and a secret", "give both, or neither")
    if mutual_user is not None and mutual_secret is not None:
        _check_user(whose, mutual_user)
        _check_secret(whose, mutual_secret, "the target's secret")
        if mutual_secret == secret:
            raise invalid(
                f"{whose}: the target's secret is the host's own: whoever has seen one side prove itself could answer for the other",
                "choose two secrets (RFC 7143 9.2.1)",
            )
    return Chap(user, secret, mutual_user, mutual_secret)


def _check_user(whose: str, user: str) -> None:
    if not user or len(user.encode()) > MAX_USER_BYTES or not user.isprintable():
        raise invalid(
            f"{whose}: a CHAP user needs 1 to {MAX_USER_BYTES} bytes without control characters", "choose another name"
        )


def _check_secret(whose: str, secret: str, which: str) -> None:
    size_bytes = len(secret.encode())
    if size_bytes < MIN_SECRET_BYTES:
        raise invalid(
            f"{whose}: {which} has {size_bytes} bytes; CHAP wants at least {MIN_SECRET_BYTES} (96 bits, RFC 7143 9.2.1), for "
            "whoever listens to a login can try shorter ones at leisure",
            "make one with `openssl rand -hex 8`: 16 characters, as many as Windows takes",
        )
    if size_bytes > MAX_SECRET_BYTES or not secret.isprintable():
        raise invalid(
            f"{whose}: {which} is longer than {MAX_SECRET_BYTES} bytes or has control characters",
            "make one with `openssl rand -hex 8`",
        )


class Hosts:
    """The hosts in the catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    # What there is.

    def all(self) -> list[HostRow]:
        """Every host, by name."""
        with self._catalogue.transaction() as db:
            rows = db.execute(
                "SELECT name, created_ns, chap_user, chap_secret, mutual_user, mutual_secret FROM hosts ORDER BY name"
            ).fetchall()
            members: dict[str, list[str]] = {}
            for initiator, host in db.execute("SELECT name, host FROM initiators ORDER BY name"):
                members.setdefault(host, []).append(initiator)
        return [
            HostRow(name, created_ns, tuple(members.get(name, ())), Chap(*chap) if chap[0] is not None else None)
            for name, created_ns, *chap in rows
        ]

    def get(self, name: str) -> HostRow:
        for host in self.all():
            if host.name == name:
                return host
        raise no_host(name)

    def of_initiator(self, initiator: str) -> str | None:
        """The host that an initiator belongs to."""
        with self._catalogue.transaction() as db:
            found = db.execute("SELECT host FROM initiators WHERE name = ?", (initiator,)).fetchone()
        return str(found[0]) if found else None

    def mappings(self) -> list[Mapping]:
        """Every mapping, by path and host."""
        with self._catalogue.transaction() as db:
            rows = db.execute("SELECT path, host, lun, read_only FROM mappings ORDER BY path, host").fetchall()
        return [Mapping(path, host, lun, bool(read_only)) for path, host, lun, read_only in rows]

    def discovery(self) -> Chap | None:
        """What initiators prove themselves with before they are told which targets there are."""
        with self._catalogue.transaction() as db:
            row = db.execute("SELECT chap_user, chap_secret, mutual_user, mutual_secret FROM discovery").fetchone()
        return Chap(*row) if row else None

    # Coming and going.

    def create(self, name: str, initiators: Iterable[str]) -> None:
        names.check_host(name)
        checked = [names.check_initiator(initiator) for initiator in initiators]
        with self._catalogue.transaction() as db:
            if db.execute("SELECT 1 FROM hosts WHERE name = ?", (name,)).fetchone():
                raise conflict(f"host {name} exists already", "choose another name, or add initiators to that one")
            db.execute("INSERT INTO hosts (name, created_ns) VALUES (?, ?)", (name, time.time_ns()))
            for initiator in checked:
                _enter(db, name, initiator)

    def delete(self, name: str, force: bool) -> None:
        """Forgets a host with its offload rules; one that has LUNs mapped to it only with `force`."""
        with self._catalogue.transaction() as db:
            _need(db, name)
            mapped = [path for (path,) in db.execute("SELECT path FROM mappings WHERE host = ? ORDER BY path", (name,))]
            if mapped and not force:
                raise conflict(
                    f"host {name} still has {len(mapped)} LUN(s) mapped to it: {', '.join(mapped[:5])}",
                    f"take them away first (`playhead host unmap {name} {mapped[0]}`), or delete it with --force",
                )
            db.execute("DELETE FROM hosts WHERE name = ?", (name,))

    def add_initiator(self, host: str, initiator: str) -> None:
        checked = names.check_initiator(initiator)
        with self._catalogue.transaction() as db:
            _need(db, host)
            _enter(db, host, checked)

    def remove_initiator(self, host: str, initiator: str) -> None:
        checked = names.check_initiator(initiator)
        with self._catalogue.transaction() as db:
            _need(db, host)
            if not db.execute("DELETE FROM initiators WHERE name = ? AND host = ?", (checked, host)).rowcount:
                raise not_found(f"host {host} has no initiator {checked}", f"see `playhead host show {host}`")

    # Credentials.

    def set_chap(self, host: str, chap: Chap | None) -> None:
        values = chap.row if chap else (None, None, None, None)
        with self._catalogue.transaction() as db:
            _need(db, host)
            if chap:
                _check_directions(db, f"host {host}", chap)
            db.execute(
                "UPDATE hosts SET chap_user = ?, chap_secret = ?, mutual_user = ?, mutual_secret = ? WHERE name = ?",
                (*values, host),
            )

    def set_discovery(self, chap: Chap | None) -> None:
        with self._catalogue.transaction() as db:
            db.execute("DELETE FROM discovery")
            if chap:
                _check_directions(db, "discovery", chap)
                db.execute("INSERT INTO discovery VALUES (1, ?, ?, ?, ?)", chap.row)

    # Mappings.

    def map(self, mapping: Mapping) -> None:
        """Maps a disk to a host, or changes how it is mapped."""
        if not 0 <= mapping.lun < MAX_LUNS:
            raise invalid(
                f"LUN {mapping.lun} is not between 0 and {MAX_LUNS - 1}", "leave --lun out to have one chosen"
            )
        with self._catalogue.transaction() as db:
            _need(db, mapping.host)
            db.execute("DELETE FROM mappings WHERE path = ? AND host = ?", (mapping.path, mapping.host))
            db.execute(
                "INSERT INTO mappings (path, host, lun, read_only) VALUES (?, ?, ?, ?)",
                (mapping.path, mapping.host, mapping.lun, mapping.read_only),
            )

    def unmap(self, host: str, path: str) -> None:
        with self._catalogue.transaction() as db:
            _need(db, host)
            if not db.execute("DELETE FROM mappings WHERE path = ? AND host = ?", (path, host)).rowcount:
                raise not_found(f"{path[:200]} is not mapped to host {host}", f"see `playhead host show {host}`")


def _need(db: sqlite3.Connection, host: str) -> None:
    if not db.execute("SELECT 1 FROM hosts WHERE name = ?", (host,)).fetchone():
        raise no_host(host)


def _check_directions(db: sqlite3.Connection, whose: str, chap: Chap) -> None:
    rows = db.execute(
        "SELECT 'host ' || name, chap_user, chap_secret, mutual_user, mutual_secret FROM hosts WHERE chap_user IS NOT NULL "
        "UNION ALL SELECT 'discovery', chap_user, chap_secret, mutual_user, mutual_secret FROM discovery"
    )
    for other, *values in rows:
        if other != whose and chap.contradicts(Chap(*values)):
            raise invalid(
                f"{whose}: one of its secrets is used by {other} in the other direction: a host could have the target answer for another",
                "choose a secret of its own for the target (RFC 7143 9.2.1)",
            )


def _enter(db: sqlite3.Connection, host: str, initiator: str) -> None:
    found = db.execute("SELECT host FROM initiators WHERE name = ?", (initiator,)).fetchone()
    if found and found[0] != host:
        raise conflict(
            f"initiator {initiator} belongs to host {found[0]}",
            f"take it from there first: `playhead host remove-initiator {found[0]} {initiator}`",
        )
    if found:
        return
    count = db.execute("SELECT count(*) FROM initiators WHERE host = ?", (host,)).fetchone()[0]
    if count >= MAX_INITIATORS:
        raise conflict(f"host {host} has {MAX_INITIATORS} initiators", "make another host")
    db.execute("INSERT INTO initiators VALUES (?, ?)", (initiator, host))
