"""The volumes of a group: what exists in the engine and is exported, Playhead's own and those whose production lives elsewhere.

An export and the volume behind it come and go together, with the group's lock held. Where two things are written the order is such that a
crash in between leaves nothing that serves what it should not: the catalogue knows of a production elsewhere before the journal has
its replica, which would be served as an empty volume otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from playhead import _native, log, names
from playhead._native import NativeError
from playhead.catalogue import PHYSICAL_BLOCK_BYTES, Catalogue, Export, SplitterRow
from playhead.errors import PlayheadError, conflict, not_found
from playhead.masking import Place
from playhead.resources import Disk, Ublk, Volume
from playhead.sizes import BLOCK_BYTES, MAX_VOLUME_BYTES, show_size
from playhead.splitter import Production, Splitters
from playhead.ublk import device_path

if TYPE_CHECKING:
    from playhead._native import VolumeDict
    from playhead.access import Access
    from playhead.array import Arrays, FabricVolume
    from playhead.catalogue import OnJournalFailure
    from playhead.export import Exports
    from playhead.group import Group

_log = log.get("volume")

SETTLE_LIMIT_S = 10.0
"""How long a detachment waits for what hosts had under way when it began."""
SETTLE_LOOK_S = 0.02

FOREIGN_DEVICES_MAX = 64
"""How many block devices of other programs are passed over for one that is free."""


class Volumes:
    """Those of one group."""

    def __init__(self, group: Group, catalogue: Catalogue, exports: Exports, access: Access, arrays: Arrays) -> None:
        self._group = group
        self._catalogue = catalogue
        self._exports = exports
        self._access = access
        self._arrays = arrays
        # Images of copies have their numbers though production cannot be opened.
        self._luns: dict[str, Export] = catalogue.exports(group.row.name)
        self.move()

    @property
    def _name(self) -> str:
        return self._group.row.name

    @property
    def _engine(self) -> _native.Group:
        return self._group.engine

    def _path(self, name: str) -> str:
        return f"{self._name}/{name}"

    # Coming and going, all of them.

    def serve(self) -> None:
        """Offers all to hosts, in the LUN order the catalogue remembers."""
        found = [volume["name"] for volume in self._engine.volumes()]
        self._luns = self._catalogue.exports(self._name)
        # A crash may have come between the journal and the catalogue: the journal is right.
        for name in [name for name in self._luns if name not in found]:
            self._catalogue.remove_export(self._name, name)
            del self._luns[name]
        for name in [name for name in found if name not in self._luns]:
            self._luns[name] = self._catalogue.add_export(self._name, name)
        for name, of in self._productions().items():
            if name in self._luns:
                self._open_splitter_or_lose(name, of)
            else:
                # Left behind by a crash: a volume that gets this name one day is not to be that production's replica.
                self._arrays.forget(self._name, name)
        for name in self._luns:
            self._export(name)

    def withdraw(self) -> None:
        """Takes all from hosts."""
        for name in self._luns:
            self._exports.remove_disk(self._path(name))

    def close(self) -> None:
        """Closes what stands before productions elsewhere, in order."""
        self._splitters.close()

    def move(self) -> None:
        """The group's journal is, or comes to be, in another directory: with change maps of its own, which are not there yet. What a
        copy lacks of production is compared then.
        """
        self._splitters = Splitters(self._name, self._group.directory / "splitter", self._arrays)

    def _productions(self) -> dict[str, Production]:
        mine = self._path("")
        found: dict[str, Production] = dict(self._catalogue.splitters(self._name))
        found |= {path.removeprefix(mine): of for path, of in self._arrays.volumes().items() if path.startswith(mine)}
        return found

    # What they are.

    def all(self) -> list[Volume]:
        return [self._resource(volume) for volume in self._engine.volumes()]

    def find(self, name: str) -> Volume:
        for volume in self._engine.volumes():
            if volume["name"] == name:
                return self._resource(volume)
        raise not_found(f"group {self._name} has no volume {name[:80]!r}", "see `playhead volume list`")

    def _resource(self, volume: VolumeDict) -> Volume:
        export = self._luns.get(volume["name"])
        path = self._path(volume["name"])
        disk = self.disk(volume, self._group.row.iqn, path, read_only=export is not None and export.read_only)
        return Volume(
            **disk.model_dump(),
            number=volume["number"],
            base=volume["base"],
            adopted=volume["adopted"],
            physical_block_bytes=self.physical_block_bytes(volume),
            created_lsn=volume["created_lsn"],
            ublk=self._ublk(volume["name"]),
            splitter=self._splitters.resource(volume["name"]),
        )

    def disk(self, volume: VolumeDict, iqn: str, path: str, *, read_only: bool) -> Disk:
        """What hosts find of a volume at `iqn`: the volume itself, or as an image shows it."""
        lun = self.lun(volume)
        hosts = self._exports.seen_by(path)
        on_array = iqn == self._group.row.iqn and self._splitters.on_array(volume["name"])
        return Disk(
            path=path,
            name=volume["name"],
            group=self._name,
            uuid=volume["uuid"],
            size_bytes=volume["block_count"] * BLOCK_BYTES,
            read_only=read_only,
            lun=lun,
            iqn=iqn,
            hosts=hosts,
            iscsi_url=self._exports.iscsi_url(iqn, lun),
            nbd_url=self._exports.nbd_url(path) if hosts is None and not on_array else None,
        )

    def lun(self, volume: VolumeDict) -> int:
        """Its number at the group's target, and in images."""
        export = self._luns.get(volume["name"])
        return export.lun if export else volume["number"]

    def physical_block_bytes(self, volume: VolumeDict) -> int:
        """What hosts are told of its physical blocks."""
        export = self._luns.get(volume["name"])
        return export.physical_block_bytes if export else PHYSICAL_BLOCK_BYTES

    def paths(self) -> set[str]:
        """Of all that are exported."""
        return {self._path(name) for name in self._luns}

    def elsewhere(self) -> list[str]:
        """Those whose production lives elsewhere."""
        return self._splitters.names()

    def alerts(self) -> list[str]:
        """What is to be said of those whose production lives elsewhere, and of block devices that are not served."""
        found = self._splitters.alerts()
        for name in sorted(self._luns):
            device = self._ublk(name)
            if device and not device.serving:
                found.append(
                    f"volume {self._path(name)} is not served as {device.device}, which waits: {device.reason}"
                )
        return found

    def set_on_journal_failure(self, choice: OnJournalFailure) -> None:
        """What becomes of hosts of those whose production lives elsewhere while the journal cannot be written."""
        self._splitters.set_on_journal_failure(choice)

    # Playhead's own.

    def create(self, name: str, size_bytes: int, physical_block_bytes: int) -> Volume:
        """A new volume that reads as zeros and takes no space until written."""
        names.check_volume(name)
        if size_bytes <= 0 or size_bytes % BLOCK_BYTES or size_bytes > MAX_VOLUME_BYTES:
            raise PlayheadError(
                "invalid",
                f"volume {self._path(name)} cannot have {size_bytes} bytes",
                f"give a multiple of {BLOCK_BYTES} up to {show_size(MAX_VOLUME_BYTES)}",
            )
        return self._add(name, lambda: self._engine.add_sparse_volume(name, size_bytes), physical_block_bytes)

    def adopt(self, name: str, path: str, physical_block_bytes: int) -> Volume:
        """A volume whose base is an image or device that exists; its blocks are where they were."""
        names.check_volume(name)
        self._check_absolute(name, path)
        return self._add(name, lambda: self._engine.adopt_volume(name, path), physical_block_bytes)

    def _check_absolute(self, name: str, path: str) -> None:
        if not Path(path).is_absolute():
            raise PlayheadError(
                "invalid", f"volume {self._path(name)}: {path!r} is not an absolute path", "write it from / on"
            )

    def _add(
        self, name: str, add: Callable[[], VolumeDict], physical_block_bytes: int, of: Production | None = None
    ) -> Volume:
        with self._group.lock:
            volume = add()
            # A crash may have left rules of a volume that had this name before.
            self._access.forget_disk(self._path(name))
            self._luns[name] = self._catalogue.add_export(self._name, name, physical_block_bytes)
            if of:
                self._open_splitter_or_lose(name, of)
            self._export(name)
            lun = self._luns[name].lun
            _log.info("volume added", volume=self._path(name), blocks=volume["block_count"], lun=lun)
            return self._resource(volume)

    def delete(self, name: str, delete_base: bool) -> None:
        """Takes a volume out of the group, and its base with it if asked."""
        with self._group.lock:
            volume, of = self.find(name), self._splitters.of(name)
            if isinstance(of, SplitterRow):
                raise conflict(
                    f"volume {self._path(name)} is attached to its production",
                    f"take it out with `playhead detach {self._path(name)}`",
                )
            self._remove(volume, of, delete_base)
            _log.info("volume deleted", volume=self._path(name), base="deleted" if delete_base else "kept")

    def _remove(self, volume: Volume, of: Production | None, delete_base: bool) -> None:
        """Hosts lose it, then the journal, then whoever else knows of it. The volume is served again if the journal keeps it."""
        name, path = volume.name, volume.path
        self._remove_ublk(volume)
        disk = self._exports.remove_disk(path) if of is None or self._splitters.disk(name) else None
        self._splitters.forget(name)
        try:
            self._engine.remove_volume(name, delete_base)
        except NativeError:
            if name in self._luns:
                if of:
                    self._open_splitter_or_lose(name, of)
                self._export(name)
            raise
        self._luns.pop(name, None)
        if of:
            self._forget_production(volume, of)
        self._access.forget_disk(path)
        self._exports.forget(disk)
        self._catalogue.remove_export(self._name, name)

    def set_read_only(self, name: str, read_only: bool) -> Volume:
        """Whether hosts may only read a volume. Those who use it are told; what they write from now on is refused."""
        with self._group.lock:
            self.find(name)
            self._remember_read_only(name, read_only)
            self._exports.set_read_only(self._path(name), read_only)
            _log.info("volume changed", volume=self._path(name), read_only=read_only)
            return self.find(name)

    def _remember_read_only(self, name: str, read_only: bool) -> None:
        self._catalogue.set_read_only(self._name, name, read_only)
        self._luns[name] = replace(self._luns[name], read_only=read_only)

    # As block devices of this host.

    def _ublk(self, name: str) -> Ublk | None:
        export = self._luns.get(name)
        if export is None or export.ublk is None:
            return None
        return self._exports.block_device(self._path(name), export.ublk)

    def set_ublk(self, name: str, wanted: bool) -> Volume:
        """Makes a volume a block device of this host too, or no longer. One that is mounted stays."""
        with self._group.lock:
            volume = self.find(name)
            if wanted and self._luns[name].ublk is None:
                self._add_ublk(volume)
            elif not wanted:
                self._remove_ublk(volume)
            return self.find(name)

    def _add_ublk(self, volume: Volume) -> None:
        name = volume.name
        if self._splitters.on_array(name):
            raise conflict(
                f"volume {volume.path} is on another array, which is reached by iSCSI alone", f"use {volume.iscsi_url}"
            )
        if name in self._splitters and self._splitters.disk(name) is None:
            raise conflict(f"production of volume {volume.path} is lost", f"`playhead attach {volume.path} PATH`")
        taken: set[int] = set()
        while True:
            number = self._catalogue.claim_ublk(self._name, name, taken)
            try:
                self._exports.add_block_device(volume.path, number)
                break
            except PlayheadError as error:
                self._catalogue.release_ublk(self._name, name)
                # Other programs serve block devices too.
                if error.code != "conflict" or volume.hosts is not None or len(taken) >= FOREIGN_DEVICES_MAX:
                    raise
                taken.add(number)
        self._luns[name] = replace(self._luns[name], ublk=number)
        _log.info("block device added", volume=volume.path, device=device_path(number))

    def _remove_ublk(self, volume: Volume) -> None:
        """First the device, then who knows of it: one that is still there is never forgotten."""
        number = self._luns[volume.name].ublk if volume.name in self._luns else None
        if number is None:
            return
        self._exports.remove_block_device(volume.path, number, volume.uuid)
        self._catalogue.release_ublk(self._name, volume.name)
        self._luns[volume.name] = replace(self._luns[volume.name], ublk=None)
        _log.info("block device removed", volume=volume.path, device=device_path(number))

    def warn_of_devices_left(self) -> None:
        """Of a group that is deleted without having been opened: whose a block device is only an open journal could tell."""
        for name, export in self._catalogue.exports(self._name).items():
            if export.ublk is not None:
                device = device_path(export.ublk)
                _log.warning(
                    "block device is left behind; it waits until the machine restarts",
                    volume=self._path(name),
                    device=device,
                )

    def _export(self, name: str) -> None:
        export = self._luns[name]
        split = name in self._splitters
        disk = self._splitters.disk(name) if split else self._engine.volume_lun(name, export.physical_block_bytes)
        if disk is None:
            # Hosts find no such LUN rather than one that is not what they had.
            return
        if export.read_only:
            disk.set_read_only(True)
        self._exports.add_disk(Place(self._path(name), self._group.row.iqn, export.lun), disk, export.ublk)

    # Those whose production lives elsewhere.

    def follow(self, name: str, of: FabricVolume, block_count: int) -> Volume:
        """A volume that follows a LUN of another array. It is synchronised from now on; hosts may use it at once."""
        names.check_volume(name)
        with self._group.lock:
            self._arrays.protect(self._name, name, of)
            try:
                size_bytes = block_count * BLOCK_BYTES
                return self._add(name, lambda: self._engine.add_sparse_volume(name, size_bytes), BLOCK_BYTES, of)
            except BaseException:
                if name not in {volume["name"] for volume in self._engine.volumes()}:
                    self._arrays.forget(self._name, name)
                raise

    def attach(self, name: str, path: str, physical_block_bytes: int) -> Volume:
        """Protects a file or block device of this host: a new volume is its replica, and hosts use it through the volume. Also one whose
        production was lost, there or elsewhere.
        """
        names.check_volume(name)
        self._check_absolute(name, path)
        with self._group.lock:
            if name in self._splitters and not self._splitters.on_array(name):
                return self._attach_again(name, path)
            engine, row = self._engine, SplitterRow("host", path)
            if any(volume["name"] == name for volume in engine.volumes()):
                raise conflict(
                    f"group {self._name} has a volume {name} already", "choose another name, or delete it first"
                )
            size_bytes = _native.host_device_size(path, self._path(name))
            self._access.forget_disk(self._path(name))
            self._luns[name] = self._catalogue.add_export(self._name, name, physical_block_bytes)
            try:
                self._catalogue.set_splitter(self._name, name, row)
                engine.add_sparse_volume(name, size_bytes)
                self._open_splitter(name, row)
            except (NativeError, PlayheadError):
                self._undo_attach(name)
                raise
            self._export(name)
            _log.info("production attached", volume=self._path(name), path=path, bytes=size_bytes)
            return self.find(name)

    def _undo_attach(self, name: str) -> None:
        for volume in self._engine.volumes():
            if volume["name"] == name:
                self._splitters.forget(name)
                self._splitters.remove_map(volume["uuid"])
                self._engine.remove_volume(name, True)
        self._luns.pop(name, None)
        self._catalogue.remove_export(self._name, name)

    def _attach_again(self, name: str, path: str) -> Volume:
        if self._splitters.disk(name) is not None:
            raise conflict(
                f"volume {self._path(name)} is attached already",
                f"detach it first: `playhead detach {self._path(name)}`",
            )
        row = SplitterRow("host", path)
        # Nobody knows what happened to it while it was away: without a map all of it is compared, whatever fails from here on.
        self._splitters.remove_map(self.find(name).uuid)
        self._open_splitter(name, row)
        self._catalogue.set_splitter(self._name, name, row)
        self._export(name)
        _log.info("production attached again", volume=self._path(name), path=path)
        return self.find(name)

    def detach(self, name: str, keep_history: bool) -> None:
        """Lets go of production, which is whole where it is. The replica and its past stay as a read-only volume, or go."""
        with self._group.lock:
            volume, of = self.find(name), self._splitters.of(name)
            if of is None or volume.splitter is None:
                raise conflict(
                    f"volume {volume.path} is Playhead's own, not attached to a production elsewhere",
                    f"delete it with `playhead volume delete {volume.path}`",
                )
            if keep_history:
                self._keep_as_history(volume, of, volume.splitter.state)
            else:
                if images := self._engine.images():
                    image = self._path(images[0]["name"])
                    raise conflict(
                        f"volume {volume.path} is shown by image {images[0]['name']}",
                        f"close it first: `playhead image close {image}`",
                    )
                self._remove(volume, of, delete_base=True)
            _log.info("production detached", volume=volume.path, production=of.where, history_kept=keep_history)

    def _keep_as_history(self, volume: Volume, of: Production, state: str) -> None:
        """The head is production's last state, for certain, or nothing happens: looked at when hosts cannot write any more."""
        name = volume.name
        self._refuse_out_of_step(volume, state)
        self._remove_ublk(volume)
        if self._splitters.disk(name):
            self._exports.remove_disk(volume.path)
        try:
            self._refuse_out_of_step(volume, self._settled_state(name))
        except BaseException:
            self._export(name)
            raise
        self._splitters.forget(name)
        # Read-only first: what comes to be without a production in between must not be written to.
        self._remember_read_only(name, True)
        self._forget_production(volume, of)
        self._export(name)

    def _settled_state(self, name: str) -> str:
        """Its state once what hosts had under way is over; as it is if that takes long."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while True:
            splitter = self._splitters.resource(name)
            state = splitter.state if splitter else "production-lost"
            if state in ("synchronised", "production-lost") or time.monotonic() > deadline:
                return state
            time.sleep(SETTLE_LOOK_S)

    def _forget_production(self, volume: Volume, of: Production) -> None:
        self._splitters.remove_map(volume.uuid)
        if isinstance(of, SplitterRow):
            self._catalogue.remove_splitter(self._name, volume.name)
        else:
            self._arrays.forget(self._name, volume.name)

    def _refuse_out_of_step(self, volume: Volume, state: str) -> None:
        if state not in ("synchronised", "production-lost"):
            raise conflict(
                f"volume {volume.path} is {state}, so its newest points are not consistent",
                "wait until it is synchronised, or detach it with --drop-history",
            )
        try:
            self._engine.check_consistent(self._engine.head()["lsn"])
        except NativeError as error:
            raise PlayheadError(
                error.code,
                f"the newest points of volume {volume.path} are not consistent: {error.message}",
                "attach it again and wait until it is synchronised, or detach it with --drop-history",
            ) from error

    def resync(self, name: str) -> Volume:
        """Compares all of a volume with its production, while hosts work."""
        with self._group.lock:
            if self.find(name).splitter is None or self._splitters.disk(name) is None:
                raise conflict(
                    f"volume {self._path(name)} has no production to compare it with", "see `playhead volume show`"
                )
            self._splitters.compare_all(name)
            return self.find(name)

    def _open_splitter(self, name: str, of: Production) -> None:
        block = self._luns[name].physical_block_bytes
        self._splitters.open(self._engine, name, of, self._group.row.on_journal_failure, block)

    def _open_splitter_or_lose(self, name: str, of: Production) -> None:
        block = self._luns[name].physical_block_bytes
        self._splitters.open_or_lose(self._engine, name, of, self._group.row.on_journal_failure, block)
