"""Arrays: other storage whose LUNs are protected here, how it is reached, and which volumes have their production there.

Playhead logs in to an array twice over: once as itself, to look and to read what has to be read, and once for each host's session, under the
host's own name unless the array is told otherwise. Secrets go into the catalogue and to the initiator, and nowhere else.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from playhead import _native, names
from playhead.catalogue import Catalogue
from playhead.errors import PlayheadError, conflict, invalid, not_found
from playhead.host import Chap, check_chap
from playhead.node import Address, parse_address
from playhead.resources import Array, ArrayLun, ArrayTarget
from playhead.resources import FabricPath as Path

if TYPE_CHECKING:
    from playhead._native import ArrayLunDict

PORT = 3260
"""What a portal without one has (RFC 7143 13.8)."""

MAX_PORTALS = 16
LOOKS_MAX = 32
"""Targets of one array that are looked at at once."""
BLOCK_BYTES = 512

Names = Literal["host", "own"]
Identity = Literal["own", "new"]


@dataclass(frozen=True)
class ArrayRow:
    """An array as the catalogue knows it."""

    name: str
    portals: tuple[str, ...]
    initiator: str
    names: Names
    digests: bool
    chap: Chap | None
    created_ns: int

    def native(self, target: str | None) -> _native.Array:
        """A target of it, or itself."""
        portals = [(address.host, address.port) for address in map(_portal, self.portals)]
        # Of the random kind (RFC 7143 11.12.5): unique for this name, and the same after a restart.
        isid = b"\x80" + hashlib.sha256(f"{self.initiator} {self.name}".encode()).digest()[:3] + b"\0\0"
        try:
            return _native.Array(
                portals,
                self.initiator,
                isid,
                target,
                self.names == "host",
                self.chap.native if self.chap else None,
                self.digests,
            )
        except _native.NativeError as error:
            raise PlayheadError(error.code, f"array {self.name}: {error.message}") from error


@dataclass(frozen=True)
class FabricVolume:
    """A volume whose production is a LUN of an array."""

    array: str
    target: str
    lun: int
    identity: Identity
    reads_zeros: bool
    """Unmapped blocks read as zeros for certain."""
    kind: ClassVar[Literal["fabric"]] = "fabric"

    @property
    def where(self) -> str:
        """For people."""
        return f"LUN {self.lun} of {self.target} on array {self.array}"


def _portal(text: str) -> Address:
    """ADDRESS or ADDRESS:PORT; an IPv6 address in brackets."""
    return parse_address(text if ":" in text.rpartition("]")[2] else f"{text}:{PORT}", "portal")


class Arrays:
    """The arrays in the catalogue."""

    def __init__(self, catalogue: Catalogue, initiator: str) -> None:
        self._catalogue = catalogue
        self._initiator = initiator
        self._targets: dict[tuple[ArrayRow, str], _native.Array] = {}
        self._lock = threading.Lock()

    # What there is.

    def all(self) -> list[ArrayRow]:
        """Every array, by name."""
        with self._catalogue.transaction() as db:
            rows = db.execute(
                "SELECT name, portals, initiator, names, digests, created_ns, chap_user, chap_secret, mutual_user, mutual_secret "
                "FROM arrays ORDER BY name"
            ).fetchall()
        return [
            ArrayRow(
                name,
                tuple(portals.split(",")),
                initiator,
                whose,
                bool(digests),
                Chap(*chap) if chap[0] else None,
                created_ns,
            )
            for name, portals, initiator, whose, digests, created_ns, *chap in rows
        ]

    def get(self, name: str) -> ArrayRow:
        for array in self.all():
            if array.name == name:
                return array
        raise not_found(
            f"there is no array {name[:80]!r}", "see `playhead array list`, or add it with `playhead array add`"
        )

    def target(self, name: str, iqn: str) -> _native.Array:
        """A target of an array, one and the same for all volumes on it: a host's session has one session with it, whichever of its LUNs the
        host uses. With two under one name and ISID the array would end the older each time (RFC 7143 6.3.5).
        """
        key = (self.get(name), iqn)
        with self._lock:
            found = self._targets.get(key)
            if found is None:
                # What a row of before was is nobody's any more, but for the volumes that still hold it.
                self._targets = {
                    (row, of): kept for (row, of), kept in self._targets.items() if row.name != name or row == key[0]
                }
                found = self._targets[key] = key[0].native(iqn)
            return found

    def volumes(self, array: str | None = None) -> dict[str, FabricVolume]:
        """The volumes with production on an array, or on any: by path."""
        with self._catalogue.transaction() as db:
            rows = db.execute(
                "SELECT group_name, volume, array, target, lun, identity, reads_zeros FROM fabric_volumes ORDER BY group_name, volume"
            ).fetchall()
        found = {
            f"{group}/{volume}": FabricVolume(of, target, lun, identity, bool(zeros))
            for group, volume, of, target, lun, identity, zeros in rows
        }
        return {path: volume for path, volume in found.items() if array is None or volume.array == array}

    def resource(self, row: ArrayRow) -> Array:
        """An array for programs."""
        return Array(
            name=row.name,
            portals=list(row.portals),
            initiator=row.initiator,
            names=row.names,
            digests=row.digests,
            chap_user=row.chap.user if row.chap else None,
            mutual_user=row.chap.mutual_user if row.chap else None,
            volumes=list(self.volumes(row.name)),
        )

    def look(self, name: str) -> list[ArrayTarget]:
        """What an array shows of itself to Playhead now: its targets and their LUNs."""
        row = self.get(name)
        try:
            targets = row.native(None).targets()
        except _native.NativeError as error:
            raise _lost(row.name, error) from error
        protected = {(v.target, v.lun): path for path, v in self.volumes(name).items()}
        # Side by side: a target that does not let Playhead in is asked for as long as one that may be about to.
        with ThreadPoolExecutor(max_workers=LOOKS_MAX, thread_name_prefix="look") as pool:
            looks = [pool.submit(self._target, row, iqn, portals, protected) for iqn, portals in targets]
            return [look.result() for look in looks]

    def _target(
        self, row: ArrayRow, iqn: str, portals: list[str], protected: dict[tuple[str, int], str]
    ) -> ArrayTarget:
        try:
            luns, reason = row.native(iqn).luns(), None
        except _native.NativeError as error:
            # Another host's target is no fault of this one's.
            luns, reason = [], error.message
        shown = [_lun(lun, protected.get((iqn, lun["number"]))) for lun in luns]
        return ArrayTarget(iqn=iqn, portals=portals, luns=shown, reason=reason)

    def lun(self, name: str, target: str, number: int) -> ArrayLunDict:
        """A LUN that can be protected."""
        row = self.get(name)
        what = f"LUN {number} of {target[:230]} on array {name}"
        try:
            lun = row.native(target).lun(number)
        except _native.NativeError as error:
            raise _lost(row.name, error) from error
        if lun is None or lun["device_type"] != 0 or lun["block_count"] == 0:
            raise not_found(
                f"{what} is no disk that {row.initiator} is shown",
                f"see `playhead array show {name}`; the array must let that initiator read it",
            )
        if lun["block_bytes"] != BLOCK_BYTES:
            raise invalid(
                f"{what} has logical blocks of {lun['block_bytes']} bytes; volumes have {BLOCK_BYTES}",
                "present it with 512-byte logical blocks (512e) on the array",
            )
        return lun

    # Coming and going.

    def add(
        self,
        name: str,
        portals: list[str],
        whose: Names,
        digests: bool,
        chap: tuple[str, str, str | None, str | None] | None,
    ) -> ArrayRow:
        names.check_array(name)
        if not portals or len(portals) > MAX_PORTALS:
            raise invalid(f"array {name} wants 1 to {MAX_PORTALS} portals", "give --portal ADDR:PORT")
        checked = tuple(_portal(portal).text for portal in portals)
        row = ArrayRow(
            name,
            checked,
            self._initiator,
            whose,
            digests,
            check_chap(f"array {name}", *chap) if chap else None,
            time.time_ns(),
        )
        with self._catalogue.transaction() as db:
            try:
                db.execute(
                    "INSERT INTO arrays VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        name,
                        ",".join(checked),
                        row.initiator,
                        whose,
                        digests,
                        row.created_ns,
                        *(row.chap.row if row.chap else (None, None, None, None)),
                    ),
                )
            except sqlite3.IntegrityError as error:
                raise conflict(f"array {name} exists already", "choose another name") from error
        return row

    def remove(self, name: str) -> None:
        """Forgets an array that no volume has its production on."""
        self.get(name)
        paths = list(self.volumes(name))
        if paths:
            raise conflict(
                f"array {name} has the production of {len(paths)} volume(s): {', '.join(paths[:5])}",
                f"delete each first: `playhead volume delete {paths[0]} --delete-base`",
            )
        with self._catalogue.transaction() as db:
            db.execute("DELETE FROM arrays WHERE name = ?", (name,))

    def _beside(self, name: str) -> set[str]:
        """The arrays that are this one under another name: one of its portals leads to them too."""
        portals = set(self.get(name).portals)
        return {row.name for row in self.all() if portals & set(row.portals)}

    def protect(self, group: str, volume: str, of: FabricVolume) -> None:
        """Remembers where a volume's production is."""
        beside = self._beside(of.array)
        for path, other in self.volumes().items():
            if (other.target, other.lun) == (of.target, of.lun) and other.array in beside:
                # What comes by way of one volume the other would not see, and call itself synchronised.
                raise conflict(
                    f"LUN {of.lun} of {of.target} is protected already, as volume {path} of array {other.array}",
                    f"see `playhead array show {other.array}`",
                )
        with self._catalogue.transaction() as db:
            try:
                db.execute(
                    "INSERT INTO fabric_volumes VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (group, volume, of.array, of.target, of.lun, of.identity, of.reads_zeros),
                )
            except sqlite3.IntegrityError as error:
                raise conflict(
                    f"LUN {of.lun} of {of.target} on array {of.array} is protected already, or the volume has another",
                    f"see `playhead array show {of.array}`",
                ) from error

    def forget(self, group: str, volume: str) -> None:
        with self._catalogue.transaction() as db:
            db.execute("DELETE FROM fabric_volumes WHERE group_name = ? AND volume = ?", (group, volume))


def paths(array: _native.Array) -> list[Path]:
    """The sessions of hosts with an array's target."""
    return [Path(**link) for link in array.links()]


def _lun(lun: ArrayLunDict, path: str | None) -> ArrayLun:
    return ArrayLun(
        number=lun["number"],
        vendor=lun["vendor"],
        product=lun["product"],
        size_bytes=lun["block_count"] * lun["block_bytes"],
        block_bytes=lun["block_bytes"],
        is_disk=lun["device_type"] == 0,
        names=lun["names"],
        volume=path,
    )


def _lost(name: str, error: _native.NativeError) -> PlayheadError:
    return PlayheadError(
        "array",
        f"array {name} cannot be asked: {error.message}",
        "see that its portals can be reached and its credentials are right",
    )
