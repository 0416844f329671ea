"""Exports: how disks are reached over iSCSI and NBD, and by which URL; and as block devices of this host.

A group is a target `PREFIX:GROUP`, an image of it a target `PREFIX:GROUP:IMAGE`; a volume keeps its LUN number in both. NBD exports are
named by path: `GROUP/VOLUME` and `GROUP/IMAGE/VOLUME`. NBD shows only what every initiator may see: its clients have no name to be mapped to.

So does a block device of this host, which a volume may be too (`ublk`).

What is offered is known here, for all front ends; `access` decides to whom.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from playhead import log
from playhead._native import IscsiServer, Lun, NativeError, NbdServer
from playhead.errors import PlayheadError, invalid
from playhead.host import Chap
from playhead.masking import NativeMasking, Place
from playhead.node import Address, Settings, url_host
from playhead.point import show_time
from playhead.policy import NativeRule
from playhead.resources import OffloadCount, Session, Ublk
from playhead.ublk import BlockDevices, device_path

if TYPE_CHECKING:
    from playhead._native import TrafficDict

REMOVE_PATIENCE_S = 5.0
"""How long taking an export away waits for I/O under way before it goes on without."""

MAX_IQN_BYTES = 223
"""RFC 7143 4.2.7.1."""

_log = log.get("export")


@dataclass(frozen=True)
class Exported:
    """A disk that is exported."""

    place: Place
    disk: Lun
    ublk: int | None = None
    """The number of the block device that it is to be too."""

    @property
    def uuid(self) -> bytes:
        """Who it is to hosts: the LUN's identity, not the volume's, for an image's disk is another LUN."""
        return uuid.UUID(self.disk.uuid).bytes


@dataclass(frozen=True)
class Tables:
    """What the front ends are to do with the disks they have."""

    rules: list[NativeRule]
    masking: NativeMasking
    seen_by: dict[str, list[str] | None]
    """Path -> the hosts that see the disk; None: every initiator does, and NBD clients too, who have no name."""
    chap_required: bool
    discovery: Chap | None
    chap: dict[str, Chap]
    """By initiator."""
    redirections: dict[str, tuple[str, bool]]
    """Target -> (portal, permanent)."""


class Exports:
    """The front ends, and what is offered on them."""

    def __init__(self, settings: Settings, reservations: Path) -> None:
        self._settings = settings
        self._reservations = reservations
        self._iscsi: IscsiServer | None = None
        self._nbd: NbdServer | None = None
        self._ublk = BlockDevices()
        self.lock = threading.RLock()
        """Held while disks come and go and while tables are put in force; taken after a group's."""
        self._disks: dict[str, Exported] = {}
        self._targets: set[str] = set()
        self._nbd_exports: set[str] = set()
        self._in_force: Tables | None = None
        self._redirected: dict[str, tuple[str, bool]] = {}
        self._opened = False
        self._tables: Callable[[Sequence[Exported]], Tables] | None = None

    def govern(self, tables: Callable[[Sequence[Exported]], Tables]) -> None:
        """Says who decides what may be seen and done."""
        self._tables = tables

    def listen(self) -> None:
        """Binds both front ends, with nothing exported; who connects waits until `open`."""
        portals, nbd = self._settings.iscsi, self._settings.nbd
        if portals:
            self._iscsi = IscsiServer(portals[0].host, portals[0].port)
            for portal in portals[1:]:
                self._iscsi.listen(portal.host, portal.port)
            self._iscsi.set_reservation_directory(str(self._reservations))
            self._ublk.heed_reservations(self._iscsi)
        if nbd:
            self._nbd = NbdServer(nbd.host, nbd.port)
            if self._iscsi:
                self._nbd.heed_reservations(self._iscsi)

    def open(self) -> None:
        """Lets in who has connected meanwhile: a host that comes back finds everything there, and nothing that is not for it."""
        with self.lock:
            self._opened = True
            self.enforce()
        if self._iscsi:
            self._iscsi.open()
        if self._nbd:
            self._nbd.open()
        # Last, since a device whose server has just died may take a moment, and other hosts are not to wait for it.
        for path in list(self._disks):
            self._serve_block_device(path)

    def enforce(self) -> None:
        """Puts in force what is decided now. Front ends hear only of what has changed, and tell only the hosts it concerns."""
        with self.lock:
            if self._tables is None or not self._opened:
                return
            tables, before = self._tables(self.disks()), self._in_force
            if self._iscsi:
                if before is None or tables.rules != before.rules:
                    self._iscsi.set_policy(tables.rules)
                if before is None or tables.masking != before.masking:
                    self._iscsi.set_masking(tables.masking)
                self._set_credentials(tables, before)
                self._redirect(tables)
            self._ublk.set_policy(tables.rules)
            if self._nbd:
                self._nbd.set_policy(tables.rules)
                # What is on another array goes there as SCSI commands, which NBD has none of.
                self._offer(
                    {
                        path
                        for path, hosts in tables.seen_by.items()
                        if hosts is None and not self._disks[path].disk.on_array
                    }
                )
            self._in_force = tables

    def _set_credentials(self, tables: Tables, before: Tables | None) -> None:
        assert self._iscsi is not None
        wanted = (tables.chap_required, tables.discovery, tables.chap)
        if before is None or wanted != (before.chap_required, before.discovery, before.chap):
            self._iscsi.set_credentials(
                tables.chap_required,
                tables.discovery.native if tables.discovery else None,
                {initiator: chap.native for initiator, chap in tables.chap.items()},
            )

    def _redirect(self, tables: Tables) -> None:
        assert self._iscsi is not None
        for iqn in self._targets:
            wanted, is_now = tables.redirections.get(iqn), self._redirected.get(iqn)
            if wanted == is_now:
                continue
            if wanted is None:
                self._iscsi.set_redirect(iqn, None, False)
                del self._redirected[iqn]
            else:
                self._iscsi.set_redirect(iqn, *wanted)
                self._redirected[iqn] = wanted

    def _offer(self, paths: set[str]) -> None:
        """Has NBD export exactly these of the disks."""
        assert self._nbd is not None
        for path in self._nbd_exports - paths:
            self._nbd_exports.discard(path)
            with _lingering(path):
                self._nbd.remove_export(path, REMOVE_PATIENCE_S)
        for path in paths - self._nbd_exports:
            disk = self._disks[path].disk
            self._nbd.add_export(path, disk, f"{path} ({'read-only' if disk.read_only else 'writable'})")
            self._nbd_exports.add(path)

    def disks(self) -> list[Exported]:
        """Everything exported."""
        return list(self._disks.values())

    def seen_by(self, path: str) -> list[str] | None:
        """The hosts that see a disk; None: every initiator."""
        return self._in_force.seen_by.get(path) if self._in_force else None

    def targets(self) -> set[str]:
        """The names of all targets."""
        return set(self._targets)

    @property
    def iscsi_portals(self) -> list[Address]:
        """Where iSCSI is served; URLs name the first."""
        return [Address(*bound) for bound in self._iscsi.portals] if self._iscsi else []

    @property
    def nbd_address(self) -> Address | None:
        return Address(*self._nbd.address) if self._nbd else None

    def iqn(self, group: str) -> str:
        """The target name that a new group gets."""
        iqn = f"{self._settings.iqn_prefix}:{group}"
        if len(iqn) > MAX_IQN_BYTES - 64:
            raise invalid(f"the target name {iqn} is too long", "use a shorter group name or iqn_prefix")
        return iqn

    def iscsi_url(self, iqn: str, lun: int) -> str | None:
        portals = self.iscsi_portals
        return f"iscsi://{url_host(portals[0], self._settings)}:{portals[0].port}/{iqn}/{lun}" if portals else None

    def nbd_url(self, path: str) -> str | None:
        address = self.nbd_address
        return f"nbd://{url_host(address, self._settings)}:{address.port}/{quote(path)}" if address else None

    def add_target(self, iqn: str) -> None:
        with self.lock:
            if self._iscsi:
                self._iscsi.add_target(iqn)
            self._targets.add(iqn)
            self.enforce()

    def remove_target(self, iqn: str) -> None:
        with self.lock:
            self._targets.discard(iqn)
            self._redirected.pop(iqn, None)
            for path in [path for path, disk in self._disks.items() if disk.place.iqn == iqn]:
                del self._disks[path]
            if self._iscsi:
                with _lingering(iqn):
                    self._iscsi.remove_target(iqn, REMOVE_PATIENCE_S)
            self.enforce()

    def add_disk(self, place: Place, disk: Lun, ublk: int | None = None) -> None:
        """Exports a disk on both front ends, or on neither; and as the block device of that number, if there is nothing in the way."""
        with self.lock:
            self._disks[place.path] = Exported(place, disk, ublk)
            try:
                # First who may see it, then the disk: no host sees for a moment what is not for it.
                self.enforce()
                if self._iscsi:
                    self._iscsi.set_lun(place.iqn, place.number, disk)
            except BaseException:
                with contextlib.suppress(NativeError, PlayheadError):
                    self.remove_disk(place.path)
                raise
            if self._opened:
                self._serve_block_device(place.path)

    def remove_disk(self, path: str) -> Lun | None:
        """Takes a disk away from hosts, and returns what it was. Its block device stays, for whoever has it mounted."""
        with self.lock:
            gone = self._disks.pop(path, None)
            if gone is None:
                return None
            if gone.ublk is not None:
                self._ublk.let_go(path)
            if self._iscsi:
                with _lingering(f"{gone.place.iqn} LUN {gone.place.number}"):
                    self._iscsi.remove_lun(gone.place.iqn, gone.place.number, REMOVE_PATIENCE_S)
            self.enforce()
            return gone.disk

    def _serve_block_device(self, path: str) -> None:
        with self.lock:
            exported = self._disks.get(path)
            if exported and exported.ublk is not None:
                self._ublk.serve_or_say(path, exported.ublk, exported.disk, self.seen_by(path))

    def add_block_device(self, path: str, number: int) -> None:
        """Makes a disk a block device of this host too, or says what is in the way."""
        with self.lock:
            exported = self._disks[path]
            self._ublk.serve(path, number, exported.disk, self.seen_by(path))
            self._disks[path] = replace(exported, ublk=number)

    def remove_block_device(self, path: str, number: int, uuid: str) -> None:
        """Takes a disk's block device away, with whatever is on it written; not while it is mounted."""
        with self.lock:
            self._ublk.remove(path, number, uuid)
            exported = self._disks.get(path)
            if exported:
                self._disks[path] = replace(exported, ublk=None)

    def block_device(self, path: str, number: int) -> Ublk:
        """How a volume's block device stands."""
        return self._ublk.resource(path, number)

    def forget(self, disk: Lun | None) -> None:
        """A disk that was taken away will not come back: nobody has it reserved any longer."""
        if disk and self._iscsi:
            try:
                self._iscsi.forget_reservations(disk.uuid)
            except NativeError as error:
                # They lie in a file that nobody will ask for again.
                _log.info("reservations of a LUN that is gone stay on disk", disk=disk.name, detail=error.message)

    def set_read_only(self, path: str, read_only: bool) -> None:
        """Lets hosts only read a disk, or write again; those who use it are told."""
        exported = self._disks.get(path)
        if exported:
            exported.disk.set_read_only(read_only)
            if self._iscsi:
                self._iscsi.mode_changed(exported.place.iqn, exported.place.number)

    def changed(self, iqn: str) -> None:
        """Tells the hosts of a target that the data is another: what they have cached is not what is there."""
        if self._iscsi and iqn in self._targets:
            self._iscsi.changed(iqn)

    def space_low(self, iqn: str) -> None:
        """Tells the hosts of a target that space runs out."""
        if self._iscsi and iqn in self._targets:
            self._iscsi.space_low(iqn)

    def traffic(self) -> list[tuple[str, TrafficDict]]:
        """What hosts have read and written over iSCSI since each disk was first exported: (path, numbers)."""
        paths = {(disk.place.iqn, disk.disk.uuid): disk.place.path for disk in self.disks()}
        found = self._iscsi.traffic() if self._iscsi else []
        return [(paths[line["target"], line["lun"]], line) for line in found if (line["target"], line["lun"]) in paths]

    def authentication_failures(self) -> int:
        """Logins that failed for lack of proof."""
        return self._iscsi.authentication_failures() if self._iscsi else 0

    def offload_counts(self) -> list[OffloadCount]:
        """What became of the offloads that hosts used, of the disks exported now."""
        paths = {(disk.place.iqn, disk.disk.uuid): disk.place.path for disk in self.disks()}
        return [
            OffloadCount(
                lun=paths[count["target"], count["lun"]],
                initiator=count["initiator"],
                offload=count["offload"],
                served=count["served"],
                rejected=count["rejected"],
                saved_bytes=count["saved_bytes"],
            )
            for count in (self._iscsi.offload_counts() if self._iscsi else [])
            if (count["target"], count["lun"]) in paths
        ]

    def sessions(self) -> list[Session]:
        """Every iSCSI session, NBD connection and block device of this host."""
        found = [_session("iscsi", "target", s) for s in self._iscsi.sessions()] if self._iscsi else []
        found += [_session("nbd", "export", c) for c in self._nbd.connections()] if self._nbd else []
        found += [_session("ublk", "name", {**d, "peer": device_path(d["number"])}) for d in self._ublk.found()]
        return found

    def stop(self, patience_s: float) -> None:
        """Ends all sessions within about `patience_s` seconds."""
        third = patience_s / 3
        for name, server in (("ublk", self._ublk), ("iscsi", self._iscsi), ("nbd", self._nbd)):
            cut = server.stop(third) if server else 0
            if cut:
                _log.info("sessions were cut at the stop", front_end=name, count=cut)


def _session(protocol: Any, key: str, found: dict[str, Any]) -> Session:
    details = dict(found)
    peer = str(details.pop("peer", ""))
    name = str(details.pop(key, None) or "")
    since_ns = details.pop("since_ns", None)
    if since_ns is not None:
        details["since"] = show_time(since_ns)
    return Session(protocol=protocol, peer=peer, name=name, details=details)


@contextlib.contextmanager
def _lingering(what: str) -> Iterator[None]:
    """A removal is carried out even when some I/O has not come back in time, or when it was never there: not an error of ours."""
    try:
        yield
    except NativeError as error:
        if error.code == "busy":
            _log.info("removed while I/O was under way", export=what, detail=error.message)
        elif error.code != "not-found":
            raise PlayheadError(error.code, error.message) from error
