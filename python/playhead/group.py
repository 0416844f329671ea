"""A consistency group in service: the engine's group, its exports, and what keeps the two in step.

Reading a group never waits for anything. What changes it takes the group's lock, so that an export and the thing behind it come and go
together. A group that cannot be opened is a `Group` too: it says why, and what to do.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playhead import _native, log, names
from playhead._native import NativeError
from playhead.catalogue import PHYSICAL_BLOCK_BYTES, Catalogue, Export, GroupRow, SplitterRow
from playhead.copy import Copies
from playhead.errors import PlayheadError, conflict, not_found
from playhead.export import Exports
from playhead.masking import Place
from playhead.point import resolve, show_time
from playhead.problem import from_native
from playhead.resources import Bookmark, Disk, Image, Journal, Point, Policy, Rewind, Volume, Window
from playhead.resources import Group as GroupResource
from playhead.sizes import BLOCK_BYTES, MAX_VOLUME_BYTES, show_size
from playhead.space import free_and_alert
from playhead.splitter import Production, Splitters

if TYPE_CHECKING:
    from playhead._native import ImageDict, Lun, PointDict, RewindDict, VolumeDict
    from playhead.access import Access
    from playhead.array import Arrays, FabricVolume

_log = log.get("group")


class Group:
    """One group, serving or failed."""

    def __init__(
        self,
        row: GroupRow,
        directory: Path,
        catalogue: Catalogue,
        exports: Exports,
        access: Access,
        arrays: Arrays,
        space_low_bytes: int,
    ) -> None:
        self.row = row
        self.directory = directory
        self._catalogue = catalogue
        self._exports = exports
        self._access = access
        self._arrays = arrays
        self._space_low_bytes = space_low_bytes
        self._lock = threading.RLock()
        self._engine: _native.Group | None = None
        self._failure: PlayheadError | None = None
        self._luns: dict[str, Export] = {}
        self._exported = False
        self._splitters = Splitters(row.name, directory / "splitter", arrays)
        self.copies = Copies(self, catalogue, space_low_bytes)

    # Coming and going.

    def create(self, segment_bytes: int | None) -> None:
        """Makes the journal of a new group."""
        with self._lock:
            self._engine = _native.Group.create(str(self.directory), self.row.name, segment_bytes)
            self._engine.set_policy(*self.row.limits)

    def open(self) -> None:
        """Opens the journal. On failure the group stays, failed, and the others are none the worse."""
        with self._lock:
            try:
                engine = _native.Group.open(str(self.directory))
            except NativeError as error:
                self._failure = from_native(error)
                _log.error("group cannot be served", group=self.row.name, code=error.code, reason=error.message)
                return
            engine.set_policy(*self.row.limits)
            self._engine, self._failure = engine, None
            recovery = engine.stats()["recovery"]
            _log.info("group opened", group=self.row.name, head=engine.head()["lsn"], **recovery)

    def export(self) -> None:
        """Offers all volumes and images to hosts, in the LUN order the catalogue remembers."""
        with self._lock:
            self.copies.start(self._engine)
            if self._engine is None or self._exported:
                return
            volumes = {volume["name"] for volume in self._engine.volumes()}
            self._luns = self._catalogue.exports(self.row.name)
            # A crash may have come between the journal and the catalogue: the journal is right.
            for name in [name for name in self._luns if name not in volumes]:
                self._catalogue.remove_export(self.row.name, name)
                del self._luns[name]
            for volume in self._engine.volumes():
                if volume["name"] not in self._luns:
                    self._luns[volume["name"]] = self._catalogue.add_export(self.row.name, volume["name"])
            self._access.keep_only(self.row.name, self._paths())
            self._exports.add_target(self.row.iqn)
            for name, of in self._productions().items():
                self._open_splitter_or_lose(name, of)
            for name in self._luns:
                self._export_volume(name)
            for image in self._engine.images():
                self._export_image(image)
            self._exported = True

    def _productions(self) -> dict[str, Production]:
        """Where the production of the group's volumes is, of those whose production lives elsewhere."""
        mine = f"{self.row.name}/"
        found: dict[str, Production] = dict(self._catalogue.splitters(self.row.name))
        found |= {path.removeprefix(mine): of for path, of in self._arrays.volumes().items() if path.startswith(mine)}
        # A crash may have come between the catalogue and the journal.
        return {name: of for name, of in found.items() if name in self._luns}

    def _open_splitter(self, name: str, of: Production) -> None:
        block = self._luns[name].physical_block_bytes
        self._splitters.open(self.engine, name, of, self.row.on_journal_failure, block)

    def _open_splitter_or_lose(self, name: str, of: Production) -> None:
        block = self._luns[name].physical_block_bytes
        self._splitters.open_or_lose(self.engine, name, of, self.row.on_journal_failure, block)

    def _paths(self) -> list[str]:
        """Of every disk, of production and of images."""
        name, engine = self.row.name, self.engine
        paths = [f"{name}/{volume['name']}" for volume in engine.volumes()]
        for image in engine.images():
            paths += [f"{name}/{image['name']}/{volume['name']}" for volume in engine.image_volumes(image["name"])]
        # Images of copies are opened later than this; who may see them must not be forgotten meanwhile.
        paths += [
            f"{name}/{image}/{volume['name']}" for image in self.copies.image_names() for volume in engine.volumes()
        ]
        return paths

    def retry(self) -> None:
        """Opens a failed group again."""
        with self._lock:
            if self._engine is not None:
                raise conflict(f"group {self.row.name} is in service already")
            self.copies.stop()
            self.open()
            if self._failure is not None:
                self.copies.start(None)
                raise self._failed()
            self.export()

    def close(self) -> None:
        """Flushes, marks the journal clean and lets go of it. Hosts get NOT READY from here on."""
        with self._lock:
            # Copies first: they take what the journal has, and say at its side how far they are.
            self.copies.stop()
            engine, self._engine = self._engine, None
            if engine is None:
                return
            self._splitters.close()
            self._failure = PlayheadError(
                "stopping", f"group {self.row.name} is being stopped", "start the service again"
            )
            try:
                engine.close()
            except NativeError as error:
                _log.error("group did not close cleanly", group=self.row.name, code=error.code, reason=error.message)

    def delete(self, force: bool) -> None:
        """Ends the group and removes its journal. Its bases must be dealt with before, volume by volume."""
        with self._lock:
            self.copies.refuse_if_any()
            if self._engine is not None:
                volumes = [volume["name"] for volume in self._engine.volumes()]
                if volumes:
                    raise conflict(
                        f"group {self.row.name} still has {len(volumes)} volume(s): {', '.join(volumes[:5])}",
                        f"delete each first: `playhead volume delete {self.row.name}/{volumes[0]} --keep-base` or `--delete-base`",
                    )
                for image in self._engine.images():
                    self.close_image(image["name"])
            elif not force:
                raise PlayheadError(
                    "failed",
                    f"group {self.row.name} is not in service, so whether it still holds data cannot be told",
                    "mend it and `playhead group retry` it, or delete it with --force: its journal is then lost",
                )
            self._catalogue.set_group_state(self.row.name, "deleting")
            if self._exported:
                self._exports.remove_target(self.row.iqn)
            self._access.forget_target(self.row.iqn)
            self._access.keep_only(self.row.name, ())
            self.close()
            remove_directory(self.directory)
            self._catalogue.remove_group(self.row.name)

    def _failed(self) -> PlayheadError:
        cause = self._failure
        reason = cause.detail if cause else "it is not open"
        step = (cause.next_step if cause else "") or f"put that right, then `playhead group retry {self.row.name}`"
        return PlayheadError("failed", f"group {self.row.name} is not in service: {reason}", step)

    @property
    def engine(self) -> _native.Group:
        """The engine's group; raises if this one is not in service."""
        engine = self._engine
        if engine is None:
            raise self._failed()
        return engine

    # What it is.

    def resource(self) -> GroupResource:
        """The group for programs, in service or not."""
        row, engine = self.row, self._engine
        policy = Policy(
            window_ns=row.window_ns, limit_bytes=row.limit_bytes, reserve_bytes=row.reserve_bytes, on_journal_failure=row.on_journal_failure
        )  # fmt: skip
        if engine is None:
            failed = self._failed()
            return GroupResource(
                name=row.name, id=None, state="failed", reason=(self._failure or failed).detail, next_step=failed.next_step, iqn=row.iqn,
                policy=policy, window=None, volumes=[], images=[], bookmark_count=0, rewind_count=0, journal_bytes=None, index_bytes=None,
                lag_bytes=None, free_bytes=None, alert=None, created=show_time(row.created_ns),
            )  # fmt: skip
        stats = engine.stats()
        free_bytes, space_alert = free_and_alert(self.directory, self._space_low_bytes)
        return GroupResource(
            name=row.name,
            id=engine.id,
            state="serving",
            reason=None,
            next_step=None,
            iqn=row.iqn,
            policy=policy,
            window=Window(edge=Point.of(stats["edge"]), head=Point.of(stats["head"])),
            volumes=[v["name"] for v in engine.volumes()],
            images=[i["name"] for i in engine.images()],
            bookmark_count=len(engine.bookmarks()),
            rewind_count=len(engine.rewinds()),
            journal_bytes=stats["journal_bytes"],
            index_bytes=stats["index_bytes"],
            lag_bytes=max(0, stats["head"]["lsn"] - stats["durable_lsn"]),
            free_bytes=free_bytes,
            alert="; ".join(alert for alert in (stats["alert"], space_alert) if alert) or None,
            created=show_time(row.created_ns),
        )

    def space_alert(self) -> str | None:
        """What is to be said of the space for its journal; None: all is well, or it is not in service."""
        engine = self._engine
        if engine is None:
            return None
        stats = engine.stats()
        return (stats["over_limit"] and stats["alert"]) or free_and_alert(self.directory, self._space_low_bytes)[1]

    def splitter_alerts(self) -> list[str]:
        """What is to be said of volumes whose production lives elsewhere."""
        return self._splitters.alerts()

    def tell_space_low(self) -> None:
        """Tells the hosts of all its volumes and images."""
        for iqn in [self.row.iqn, *(self._image_iqn(image["name"]) for image in self.engine.images())]:
            self._exports.space_low(iqn)

    def journal(self) -> Journal:
        """The engine's numbers."""
        stats = self.engine.stats()
        window = Window(edge=Point.of(stats.pop("edge")), head=Point.of(stats.pop("head")))
        known = {key: value for key, value in stats.items() if key in Journal.model_fields}
        return Journal(group=self.row.name, directory=str(self.directory), window=window, **known)

    def head(self) -> Point:
        """The newest point, all acknowledged writes included."""
        return Point.of(self.engine.head())

    def resolve(self, at: str) -> PointDict:
        """The point that a person's expression names."""
        return self._resolve(self.engine, at)

    def _resolve(self, engine: _native.Group, at: str) -> PointDict:
        return resolve(
            at,
            group=self.row.name,
            head=engine.head,
            edge=lambda: engine.window()["edge"],
            at_lsn=engine.point_at_lsn,
            at_time=engine.point_at_time,
            bookmarks=engine.bookmarks,
        )

    # Volumes.

    def volumes(self) -> list[Volume]:
        return [self._volume(volume) for volume in self.engine.volumes()]

    def volume(self, name: str) -> Volume:
        for volume in self.engine.volumes():
            if volume["name"] == name:
                return self._volume(volume)
        raise not_found(f"group {self.row.name} has no volume {name[:80]!r}", "see `playhead volume list`")

    def _volume(self, volume: VolumeDict) -> Volume:
        export = self._luns.get(volume["name"])
        path = f"{self.row.name}/{volume['name']}"
        disk = self._disk(volume, self.row.iqn, path, read_only=export is not None and export.read_only)
        return Volume(
            **disk.model_dump(),
            number=volume["number"],
            base=volume["base"],
            adopted=volume["adopted"],
            physical_block_bytes=self._physical_block_bytes(volume),
            created_lsn=volume["created_lsn"],
            splitter=self._splitters.resource(volume["name"]),
        )

    def _disk(self, volume: VolumeDict, iqn: str, path: str, *, read_only: bool) -> Disk:
        lun = self._lun(volume)
        hosts = self._exports.seen_by(path)
        on_array = iqn == self.row.iqn and self._splitters.on_array(volume["name"])
        return Disk(
            path=path,
            name=volume["name"],
            group=self.row.name,
            uuid=volume["uuid"],
            size_bytes=volume["block_count"] * BLOCK_BYTES,
            read_only=read_only,
            lun=lun,
            iqn=iqn,
            hosts=hosts,
            iscsi_url=self._exports.iscsi_url(iqn, lun),
            nbd_url=self._exports.nbd_url(path) if hosts is None and not on_array else None,
        )

    def _lun(self, volume: VolumeDict) -> int:
        export = self._luns.get(volume["name"])
        return export.lun if export else volume["number"]

    def _physical_block_bytes(self, volume: VolumeDict) -> int:
        export = self._luns.get(volume["name"])
        return export.physical_block_bytes if export else PHYSICAL_BLOCK_BYTES

    def create_volume(self, name: str, size_bytes: int, physical_block_bytes: int) -> Volume:
        """A new volume that reads as zeros and takes no space until written."""
        names.check_volume(name)
        if size_bytes <= 0 or size_bytes % BLOCK_BYTES or size_bytes > MAX_VOLUME_BYTES:
            raise PlayheadError(
                "invalid",
                f"volume {self.row.name}/{name} cannot have {size_bytes} bytes",
                f"give a multiple of {BLOCK_BYTES} up to {show_size(MAX_VOLUME_BYTES)}",
            )
        return self._add_volume(name, lambda: self.engine.add_sparse_volume(name, size_bytes), physical_block_bytes)

    def adopt_volume(self, name: str, path: str, physical_block_bytes: int) -> Volume:
        """A volume whose base is an image or device that exists; its blocks are where they were."""
        names.check_volume(name)
        if not Path(path).is_absolute():
            raise PlayheadError(
                "invalid", f"volume {self.row.name}/{name}: {path!r} is not an absolute path", "write it from / on"
            )
        return self._add_volume(name, lambda: self.engine.adopt_volume(name, path), physical_block_bytes)

    def add_fabric_volume(self, name: str, of: FabricVolume, block_count: int) -> Volume:
        """A volume that follows a LUN of another array. It is synchronised from now on; hosts may use it at once."""
        names.check_volume(name)
        with self._lock:
            # The catalogue first: a volume that the journal has and the catalogue does not would be served as an empty one.
            self._arrays.protect(self.row.name, name, of)
            try:
                size_bytes = block_count * BLOCK_BYTES
                return self._add_volume(name, lambda: self.engine.add_sparse_volume(name, size_bytes), BLOCK_BYTES, of)
            except BaseException:
                if name not in {volume["name"] for volume in self.engine.volumes()}:
                    self._arrays.forget(self.row.name, name)
                raise

    def _add_volume(
        self, name: str, add: Callable[[], VolumeDict], physical_block_bytes: int, of: Production | None = None
    ) -> Volume:
        with self._lock:
            volume = add()
            # A crash may have left rules of a volume that had this name before.
            self._access.forget_disk(f"{self.row.name}/{name}")
            self._luns[name] = self._catalogue.add_export(self.row.name, name, physical_block_bytes)
            if of:
                self._open_splitter_or_lose(name, of)
            self._export_volume(name)
            _log.info(
                "volume added", volume=f"{self.row.name}/{name}", blocks=volume["block_count"], lun=self._luns[name].lun
            )
            return self._volume(volume)

    def delete_volume(self, name: str, delete_base: bool) -> None:
        """Takes a volume out of the group, and its base with it if asked."""
        with self._lock:
            volume, of = self.volume(name), self._splitters.of(name)
            if isinstance(of, SplitterRow):
                raise conflict(
                    f"volume {self.row.name}/{name} is attached to its production",
                    f"take it out with `playhead detach {self.row.name}/{name}`",
                )
            path = f"{self.row.name}/{name}"
            disk = self._exports.remove_disk(path)
            self._splitters.forget(name)
            try:
                self.engine.remove_volume(name, delete_base)
            except NativeError:
                if name in self._luns:
                    self._serve_again(name, of)
                raise
            self._luns.pop(name, None)
            if of:
                self._splitters.remove_map(volume.uuid)
                self._arrays.forget(self.row.name, name)
            self._access.forget_disk(path)
            self._exports.forget(disk)
            self._catalogue.remove_export(self.row.name, name)
            _log.info("volume deleted", volume=path, base="deleted" if delete_base else "kept")

    # Production that lives elsewhere.

    def attach(self, name: str, path: str, physical_block_bytes: int) -> Volume:
        """Protects a file or block device of this host: a new volume is its replica, and hosts use it through the volume. Also one whose
        production was lost, there or elsewhere.
        """
        names.check_volume(name)
        if not Path(path).is_absolute():
            raise PlayheadError(
                "invalid", f"volume {self.row.name}/{name}: {path!r} is not an absolute path", "write it from / on"
            )
        with self._lock:
            if name in self._splitters and not self._splitters.on_array(name):
                return self._attach_again(name, path)
            engine, row = self.engine, SplitterRow("host", path)
            if any(volume["name"] == name for volume in engine.volumes()):
                raise conflict(
                    f"group {self.row.name} has a volume {name} already", "choose another name, or delete it first"
                )
            size_bytes = _native.host_device_size(path, f"{self.row.name}/{name}")
            self._access.forget_disk(f"{self.row.name}/{name}")
            # The catalogue first: a volume that the journal has and the catalogue does not would be served as an empty one.
            self._luns[name] = self._catalogue.add_export(self.row.name, name, physical_block_bytes)
            try:
                self._catalogue.set_splitter(self.row.name, name, row)
                engine.add_sparse_volume(name, size_bytes)
                self._splitters.open(engine, name, row, self.row.on_journal_failure, physical_block_bytes)
            except (NativeError, PlayheadError):
                self._undo_attach(name)
                raise
            self._export_volume(name)
            _log.info("production attached", volume=f"{self.row.name}/{name}", path=path, bytes=size_bytes)
            return self.volume(name)

    def _undo_attach(self, name: str) -> None:
        for volume in self.engine.volumes():
            if volume["name"] == name:
                self._splitters.forget(name)
                self._splitters.remove_map(volume["uuid"])
                self.engine.remove_volume(name, True)
        self._luns.pop(name, None)
        self._catalogue.remove_export(self.row.name, name)

    def _attach_again(self, name: str, path: str) -> Volume:
        if self._splitters.disk(name) is not None:
            raise conflict(
                f"volume {self.row.name}/{name} is attached already",
                f"detach it first: `playhead detach {self.row.name}/{name}`",
            )
        row = SplitterRow("host", path)
        self._open_splitter(name, row)
        # Nobody knows what happened to it while it was away.
        self._splitters.compare_all(name)
        self._catalogue.set_splitter(self.row.name, name, row)
        self._export_volume(name)
        _log.info("production attached again", volume=f"{self.row.name}/{name}", path=path)
        return self.volume(name)

    def detach(self, name: str, keep_history: bool) -> None:
        """Lets go of production, which is whole where it is. The replica and its past stay as a read-only volume, or go."""
        with self._lock:
            volume, of = self.volume(name), self._splitters.of(name)
            if of is None or volume.splitter is None:
                raise conflict(
                    f"volume {self.row.name}/{name} is Playhead's own, not attached to a production elsewhere",
                    f"delete it with `playhead volume delete {self.row.name}/{name}`",
                )
            if keep_history and volume.splitter.state not in ("synchronised", "production-lost"):
                raise conflict(
                    f"volume {self.row.name}/{name} is {volume.splitter.state}, so its newest points are not consistent",
                    "wait until it is synchronised, or detach it with --drop-history",
                )
            if not keep_history and (images := self.engine.images()):
                raise conflict(
                    f"volume {self.row.name}/{name} is shown by image {images[0]['name']}",
                    f"close it first: `playhead image close {self.row.name}/{images[0]['name']}`",
                )
            path = f"{self.row.name}/{name}"
            disk = self._exports.remove_disk(path) if self._splitters.disk(name) else None
            self._splitters.forget(name)
            if not keep_history:
                self._remove_replica(name, of)
            self._splitters.remove_map(volume.uuid)
            if isinstance(of, SplitterRow):
                self._catalogue.remove_splitter(self.row.name, name)
            else:
                self._arrays.forget(self.row.name, name)
            if keep_history:
                self._catalogue.set_read_only(self.row.name, name, True)
                self._luns[name] = replace(self._luns[name], read_only=True)
                self._export_volume(name)
            else:
                self._luns.pop(name, None)
                self._access.forget_disk(path)
                self._exports.forget(disk)
                self._catalogue.remove_export(self.row.name, name)
            _log.info("production detached", volume=path, production=of.where, history_kept=keep_history)

    def _remove_replica(self, name: str, of: Production) -> None:
        try:
            self.engine.remove_volume(name, True)
        except NativeError:
            self._serve_again(name, of)
            raise

    def _serve_again(self, name: str, of: Production | None) -> None:
        """Takes back that a volume was about to go."""
        if of:
            self._open_splitter_or_lose(name, of)
        self._export_volume(name)

    def resync(self, name: str) -> Volume:
        """Compares all of a volume with its production, while hosts work."""
        with self._lock:
            if self.volume(name).splitter is None or self._splitters.disk(name) is None:
                raise conflict(
                    f"volume {self.row.name}/{name} has no production to compare it with", "see `playhead volume show`"
                )
            self._splitters.compare_all(name)
            return self.volume(name)

    def _export_volume(self, name: str) -> None:
        export = self._luns[name]
        split = name in self._splitters
        block = export.physical_block_bytes
        disk = self._splitters.disk(name) if split else self.engine.volume_lun(name, block)
        if disk is None:
            # Hosts find no such LUN rather than one that is not what they had.
            return
        if export.read_only:
            disk.set_read_only(True)
        self._exports.add_disk(Place(f"{self.row.name}/{name}", self.row.iqn, export.lun), disk)

    def set_volume_read_only(self, name: str, read_only: bool) -> Volume:
        """Whether hosts may only read a volume. Those who use it are told; what they write from now on is refused."""
        with self._lock:
            self.volume(name)
            self._catalogue.set_read_only(self.row.name, name, read_only)
            self._luns[name] = replace(self._luns[name], read_only=read_only)
            self._exports.set_read_only(f"{self.row.name}/{name}", read_only)
            _log.info("volume changed", volume=f"{self.row.name}/{name}", read_only=read_only)
            return self.volume(name)

    # Bookmarks.

    def bookmarks(self) -> list[Bookmark]:
        return [self._bookmark(b["name"], b["kind"], b["point"]) for b in self.engine.bookmarks()]

    def create_bookmark(self, name: str, kind: Any) -> Bookmark:
        """Names this instant; it survives power loss when this returns."""
        names.check_bookmark(name)
        return self._bookmark(name, kind, self.engine.bookmark(name, kind))

    def _bookmark(self, name: str, kind: Any, point: PointDict) -> Bookmark:
        return Bookmark(
            path=f"{self.row.name}/{name}",
            name=name,
            group=self.row.name,
            kind=kind,
            lsn=point["lsn"],
            time=show_time(point["time_ns"]),
        )

    # Images.

    def images(self) -> list[Image]:
        """Of production and of its copies. A failed group has those of its copies."""
        own = [self._image(image) for image in self.engine.images()] if self._engine or not self.copies.names() else []
        return own + [self._image(image, copy) for copy, image in self.copies.images()]

    def image(self, name: str) -> Image:
        for image in self.images():
            if image.name == name:
                return image
        raise not_found(f"group {self.row.name} has no open image {name[:80]!r}", "see `playhead image list`")

    def open_image(self, name: str, at: str, writable: bool, *, force: bool = False, copy: str | None = None) -> Image:
        """The group's volumes as of a point, exported like volumes; read from production, or from a copy. `force`: also where a volume was
        being resynchronised.
        """
        names.check_image(name)
        with self._lock:
            if copy is not None:
                return self._open_copy_image(name, at, writable, copy)
            if name in self.copies.image_names():
                raise conflict(f"a copy of group {self.row.name} has an open image {name}", "choose another name")
            point = self.resolve(at)
            image = self.engine.open_image(name, point["lsn"], writable, force)
            try:
                self._export_image(image)
            except NativeError:
                self.engine.close_image(name)
                raise
            _log.info("image opened", image=f"{self.row.name}/{name}", lsn=image["point"]["lsn"], writable=writable)
            return self._image(image)

    def close_image(self, name: str) -> None:
        """Takes an image away; what was written to a writable one is discarded."""
        with self._lock:
            image = self.image(name)
            disks = self._unexport_image(image)
            if image.copy_name is not None:
                self.copies.close_image(image.copy_name, name)
                self._forget_image(image, disks)
                return
            try:
                self.engine.close_image(name)
            except NativeError:
                self._export_image(next(i for i in self.engine.images() if i["name"] == name))
                raise
            self._forget_image(image, disks)

    def _forget_image(self, image: Image, disks: dict[str, Lun | None]) -> None:
        self._access.forget_target(image.iqn)
        for path, disk in disks.items():
            self._access.forget_disk(path)
            self._exports.forget(disk)
        _log.info("image closed", image=image.path)

    def _open_copy_image(self, name: str, at: str, writable: bool, copy: str) -> Image:
        if writable:
            raise conflict(
                f"an image of copy {self.row.name}/{copy} cannot be writable: the copy's log is production's, byte for byte",
                "open it read-only, open the same point of production as writable, or promote the copy",
            )
        if self._engine and any(image["name"] == name for image in self._engine.images()):
            raise conflict(f"group {self.row.name} has an open image {name}", "choose another name")
        engine = self.copies.engine(copy)
        point = self._resolve(engine, at)
        image = self.copies.open_image(copy, name, point["lsn"])
        try:
            self.export_copy_image(engine, image)
        except NativeError:
            self.copies.close_image(copy, name)
            raise
        _log.info("image opened", image=f"{self.row.name}/{name}", lsn=image["point"]["lsn"], copy=copy)
        return self._image(image, copy)

    def export_copy_image(self, engine: _native.Group, image: ImageDict) -> None:
        """Offers an image of a copy to hosts."""
        self._export_image(image, engine)

    def unexport_copy_image(self, name: str) -> None:
        """Takes an image's disks from hosts, for a time: who may see them stays known."""
        iqn = self._image_iqn(name)
        for exported in self._exports.disks():
            if exported.place.iqn == iqn:
                self._exports.remove_disk(exported.place.path)
        self._exports.remove_target(iqn)

    def _image_iqn(self, name: str) -> str:
        return f"{self.row.iqn}:{name}"

    def _export_image(self, image: ImageDict, engine: _native.Group | None = None) -> None:
        iqn, name = self._image_iqn(image["name"]), image["name"]
        engine = engine or self.engine
        self._exports.add_target(iqn)
        for volume in engine.image_volumes(name):
            disk = engine.image_lun(name, volume["name"], self._physical_block_bytes(volume))
            place = Place(f"{self.row.name}/{name}/{volume['name']}", iqn, self._lun(volume))
            self._exports.add_disk(place, disk)

    def _unexport_image(self, image: Image) -> dict[str, Lun | None]:
        disks = {disk.path: self._exports.remove_disk(disk.path) for disk in image.volumes}
        self._exports.remove_target(image.iqn)
        return disks

    def _image(self, image: ImageDict, copy: str | None = None) -> Image:
        engine = self.copies.engine(copy) if copy is not None else self.engine
        iqn, path = self._image_iqn(image["name"]), f"{self.row.name}/{image['name']}"
        disks = [
            self._disk(volume, iqn, f"{path}/{volume['name']}", read_only=not image["writable"])
            for volume in engine.image_volumes(image["name"])
        ]
        disks.sort(key=lambda disk: disk.lun)
        first = disks[0] if disks else None
        return Image(
            path=path,
            name=image["name"],
            group=self.row.name,
            copy_name=copy,
            point=Point.of(image["point"]),
            writable=image["writable"],
            created=show_time(image["created_ns"]),
            iqn=iqn,
            size_bytes=first.size_bytes if first else None,
            iscsi_url=first.iscsi_url if first else None,
            nbd_url=first.nbd_url if first else None,
            volumes=disks,
        )

    # Going back.

    def rewind(self, to: str) -> Rewind:
        """Production goes back to a point. No data moves, nothing is lost: it can be undone."""
        with self._lock:
            self._refuse_to_move()
            point = self.resolve(to)
            return self._rewound(self.engine.rewind(point["lsn"]))

    def _refuse_to_move(self) -> None:
        if elsewhere := sorted(self._splitters.names()):
            raise conflict(
                f"group {self.row.name} cannot be rewound: the production of volume {elsewhere[0]} lives elsewhere",
                "open an image of that point and copy from it",
            )

    def undo_rewind(self) -> Rewind:
        """Production returns to where it was before the last rewind."""
        with self._lock:
            self._refuse_to_move()
            return self._rewound(self.engine.undo_rewind())

    def rewinds(self) -> list[Rewind]:
        return [self._rewind(rewind) for rewind in self.engine.rewinds()]

    def _rewound(self, rewind: RewindDict) -> Rewind:
        result = self._rewind(rewind)
        _log.info("production moved", group=self.row.name, to=result.to.lsn, undo_lsn=result.undo_lsn)
        self._exports.changed(self.row.iqn)
        names_in_use = {self.row.iqn, *(f"{self.row.name}/{volume}" for volume in self._luns)}
        using = [s for s in self._exports.sessions() if s.name in names_in_use]
        if using:
            result.warnings.append(
                f"{len(using)} session(s) are on volumes of this group: what those hosts have cached is not what the volumes hold now; "
                "unmount there and mount again"
            )
        return result

    def _rewind(self, rewind: RewindDict) -> Rewind:
        return Rewind(
            group=self.row.name, at=Point.of(rewind["at"]), to=Point.of(rewind["to"]), undo_lsn=rewind["undo_lsn"]
        )

    # Taking over.

    def promote_copy(self, name: str, *, while_serving: bool, allow_inconsistent: bool) -> GroupResource:
        """Makes a copy production. Hosts find the same targets, LUN numbers and identities on it. What production has and the copy has
        not is lost to the group; the old journal is left where it is, for whoever wants to look at it.
        """
        with self._lock:
            directory = self.copies.check_promotable(
                name,
                serving=self._engine is not None,
                while_serving=while_serving,
                allow_inconsistent=allow_inconsistent,
            )
            if self._engine is not None:
                self._unexport_all()
                self.copies.drain(name)
            self.close()
            old = self.directory
            try:
                _native.promote_copy(str(directory), allow_inconsistent)
                self.copies.promoted(name)
                self.row = replace(self.row, directory=str(directory))
                self.directory = directory
                # With change maps of its own, which are not there yet: what the copy lacks of production is compared.
                self._splitters = Splitters(self.row.name, directory / "splitter", self._arrays)
            finally:
                self.open()
                self.export()
            _log.info("copy promoted", copy=f"{self.row.name}/{name}", directory=str(directory), left_behind=str(old))
            if self._failure is not None:
                raise self._failed()
            return self.resource()

    def _unexport_all(self) -> None:
        for image in self.images():
            self._unexport_image(image)
        if self._exported:
            for name in self._luns:
                self._exports.remove_disk(f"{self.row.name}/{name}")
            self._exports.remove_target(self.row.iqn)
        self._exported = False

    # The window.

    def set_policy(self, policy: Policy) -> GroupResource:
        """How much past is kept from now on."""
        with self._lock:
            engine = self.engine
            row = replace(self.row, **policy.model_dump())
            self._catalogue.set_policy(row)
            engine.set_policy(*row.limits)
            self._splitters.set_on_journal_failure(row.on_journal_failure)
            self.row = row
            return self.resource()

    def trim(self, to: str) -> Point:
        """Gives up the past before a point; returns the new edge, which is not after it."""
        return Point.of(self.engine.trim_to(self.resolve(to)["lsn"]))

    def settle(self, progress: Callable[[int, int], bool]) -> None:
        """Brings the bases up to date, giving up the past."""
        self.engine.settle(progress)


def remove_directory(directory: Path) -> None:
    """Removes a group's directory; what is there already gone is no error."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PlayheadError(
            "io", f"{directory} cannot be removed: {error.strerror}", "remove it by hand, then restart"
        ) from error
