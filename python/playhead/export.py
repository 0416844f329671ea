"""Exports: how disks are reached over iSCSI and NBD, and by which URL.

A group is a target `PREFIX:GROUP`, an image of it a target `PREFIX:GROUP:IMAGE`; a volume keeps its LUN number in both. NBD exports are
named by path: `GROUP/VOLUME` and `GROUP/IMAGE/VOLUME`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from playhead import log
from playhead._native import IscsiServer, Lun, NativeError, NbdServer
from playhead.errors import PlayheadError, invalid
from playhead.node import Address, Settings, url_host
from playhead.point import show_time
from playhead.resources import Session

REMOVE_PATIENCE_S = 5.0
"""How long taking an export away waits for I/O under way before it goes on without."""

MAX_IQN_BYTES = 223
"""RFC 7143 4.2.7.1."""

_log = log.get("export")


class Exports:
    """The two front ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._iscsi: IscsiServer | None = None
        self._nbd: NbdServer | None = None

    def listen(self) -> None:
        """Binds both front ends, with nothing exported; who connects waits until `open`."""
        iscsi, nbd = self._settings.iscsi, self._settings.nbd
        if iscsi:
            self._iscsi = IscsiServer(iscsi.host, iscsi.port)
        if nbd:
            self._nbd = NbdServer(nbd.host, nbd.port)
            if self._iscsi:
                self._nbd.heed_reservations(self._iscsi)

    def open(self) -> None:
        """Lets in who has connected meanwhile: a host that comes back finds everything there."""
        if self._iscsi:
            self._iscsi.open()
        if self._nbd:
            self._nbd.open()

    @property
    def iscsi_address(self) -> Address | None:
        return Address(*self._iscsi.address) if self._iscsi else None

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
        address = self.iscsi_address
        return f"iscsi://{url_host(address, self._settings)}:{address.port}/{iqn}/{lun}" if address else None

    def nbd_url(self, path: str) -> str | None:
        address = self.nbd_address
        return f"nbd://{url_host(address, self._settings)}:{address.port}/{quote(path)}" if address else None

    def add_target(self, iqn: str) -> None:
        if self._iscsi:
            self._iscsi.add_target(iqn)

    def remove_target(self, iqn: str) -> None:
        if self._iscsi:
            with _lingering(iqn):
                self._iscsi.remove_target(iqn, REMOVE_PATIENCE_S)

    def add_disk(self, iqn: str, lun: int, path: str, disk: Lun) -> None:
        """Exports a disk on both front ends, or on neither."""
        if self._iscsi:
            self._iscsi.set_lun(iqn, lun, disk)
        if self._nbd:
            try:
                self._nbd.add_export(path, disk, f"{path} ({'read-only' if disk.read_only else 'writable'})")
            except NativeError:
                if self._iscsi:
                    with contextlib.suppress(NativeError):
                        self._iscsi.remove_lun(iqn, lun, 0.0)
                raise

    def remove_disk(self, iqn: str, lun: int, path: str) -> None:
        if self._iscsi:
            with _lingering(f"{iqn} LUN {lun}"):
                self._iscsi.remove_lun(iqn, lun, REMOVE_PATIENCE_S)
        if self._nbd:
            with _lingering(path):
                self._nbd.remove_export(path, REMOVE_PATIENCE_S)

    def sessions(self) -> list[Session]:
        """Every iSCSI session and NBD connection."""
        found = [_session("iscsi", "target", s) for s in self._iscsi.sessions()] if self._iscsi else []
        found += [_session("nbd", "export", c) for c in self._nbd.connections()] if self._nbd else []
        return found

    def stop(self, patience_s: float) -> None:
        """Ends all sessions within about `patience_s` seconds."""
        half = patience_s / 2
        for name, server in (("iscsi", self._iscsi), ("nbd", self._nbd)):
            cut = server.stop(half) if server else 0
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
