"""The images of a group: what the engine has open, of production and of copies, exported like volumes.

An image of production is the journal's own. One of a copy is in the copy's journal, and the catalogue has its name, since who may see it must be
known while the copy is away; `copy` looks after those. An export and the image behind it come and go together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from playhead import _native, log, names
from playhead._native import NativeError
from playhead.errors import PlayheadError, conflict, not_found
from playhead.masking import Place
from playhead.point import show_time
from playhead.resources import Image, Point

if TYPE_CHECKING:
    from playhead._native import ImageDict, Lun
    from playhead.access import Access
    from playhead.export import Exports
    from playhead.group import Group

_log = log.get("image")


class Images:
    """Those of one group. Reading waits for nothing; what changes them takes the group's lock."""

    def __init__(self, group: Group, exports: Exports, access: Access) -> None:
        self._group = group
        self._exports = exports
        self._access = access

    @property
    def _name(self) -> str:
        return self._group.row.name

    # Coming and going, all of them.

    def serve(self) -> None:
        """Offers those of production to hosts; those of copies come when their copies do."""
        for image in self._group.engine.images():
            self.export(image, self._group.engine)

    def withdraw(self) -> None:
        """Takes all from hosts."""
        for image in self.all():
            self._withdraw(image)

    # What they are.

    def all(self) -> list[Image]:
        """Of production and of its copies. A failed group has those of its copies."""
        group = self._group
        own: list[Image] = []
        if group.serves or not group.copies.names():
            own = [self._resource(image, group.engine) for image in group.engine.images()]
        return own + [self._resource(image, engine, copy) for copy, engine, image in group.copies.images()]

    def find(self, name: str) -> Image:
        for image in self.all():
            if image.name == name:
                return image
        raise not_found(f"group {self._name} has no open image {name[:80]!r}", "see `playhead image list`")

    def iqn(self, name: str) -> str:
        return f"{self._group.row.iqn}:{name}"

    def own_names(self) -> set[str]:
        """Of those of production, if it is in service."""
        return {image["name"] for image in self._group.engine.images()} if self._group.serves else set()

    def alerts(self) -> list[str]:
        """What an administrator should know of them."""
        try:
            return [f"image {image.path}: {image.alert}" for image in self.all() if image.alert]
        except (NativeError, PlayheadError):
            # The group, or a copy, went just then; that is said of those.
            return []

    def _resource(self, image: ImageDict, engine: _native.Group, copy: str | None = None) -> Image:
        volumes = self._group.volumes
        iqn, path = self.iqn(image["name"]), f"{self._name}/{image['name']}"
        disks = [
            volumes.disk(volume, iqn, f"{path}/{volume['name']}", read_only=not image["writable"])
            for volume in engine.image_volumes(image["name"])
        ]
        disks.sort(key=lambda disk: disk.lun)
        first = disks[0] if disks else None
        return Image(
            path=path,
            name=image["name"],
            group=self._name,
            copy_name=copy,
            point=Point.of(image["point"]),
            writable=image["writable"],
            scratch_bytes=image["scratch_bytes"],
            alert=image["alert"],
            created=show_time(image["created_ns"]),
            iqn=iqn,
            size_bytes=first.size_bytes if first else None,
            iscsi_url=first.iscsi_url if first else None,
            nbd_url=first.nbd_url if first else None,
            volumes=disks,
        )

    # Changes.

    def open(self, name: str, at: str, writable: bool, *, force: bool = False, copy: str | None = None) -> Image:
        """The group's volumes as of a point, exported like volumes; read from production, or from a copy. `force`: also where a volume was
        being resynchronised.
        """
        names.check_image(name)
        group = self._group
        with group.lock:
            if name in self.own_names():
                raise conflict(f"group {self._name} has an open image {name}", "choose another name")
            if copy is not None:
                engine = group.copies.engine(copy)
                image = group.copies.open_image(copy, name, group.resolve(at, engine)["lsn"], writable, force)
            else:
                engine = group.engine
                if name in group.copies.image_names():
                    raise conflict(f"a copy of group {self._name} has an open image {name}", "choose another name")
                image = engine.open_image(name, group.resolve(at, engine)["lsn"], writable, force)
                try:
                    self.export(image, engine)
                except NativeError:
                    engine.close_image(name)
                    raise
            _log.info(
                "image opened", image=f"{self._name}/{name}", lsn=image["point"]["lsn"], writable=writable, copy=copy
            )
            return self._resource(image, engine, copy)

    def close(self, name: str) -> None:
        """Takes an image away; what was written to a writable one is discarded."""
        with self._group.lock:
            image = self.find(name)
            disks = self._withdraw(image)
            if image.copy_name is not None:
                self._group.copies.close_image(image.copy_name, name)
            else:
                engine = self._group.engine
                try:
                    engine.close_image(name)
                except NativeError:
                    self.export(next(i for i in engine.images() if i["name"] == name), engine)
                    raise
            self._access.forget_target(image.iqn)
            for path, disk in disks.items():
                self._access.forget_disk(path)
                self._exports.forget(disk)
            _log.info("image closed", image=image.path)

    # Exports.

    def export(self, image: ImageDict, engine: _native.Group) -> None:
        """Offers an image to hosts."""
        iqn, name = self.iqn(image["name"]), image["name"]
        volumes = self._group.volumes
        self._exports.add_target(iqn)
        for volume in engine.image_volumes(name):
            disk = engine.image_lun(name, volume["name"], volumes.physical_block_bytes(volume))
            place = Place(f"{self._name}/{name}/{volume['name']}", iqn, volumes.lun(volume))
            self._exports.add_disk(place, disk)

    def unexport(self, name: str) -> None:
        """Takes an image's disks from hosts, for a time: who may see them stays known."""
        iqn = self.iqn(name)
        for exported in self._exports.disks():
            if exported.place.iqn == iqn:
                self._exports.remove_disk(exported.place.path)
        self._exports.remove_target(iqn)

    def tell_space_low(self, image_names: list[str]) -> None:
        """Tells the hosts of these that space runs out."""
        for name in image_names:
            self._exports.space_low(self.iqn(name))

    def _withdraw(self, image: Image) -> dict[str, Lun | None]:
        disks = {disk.path: self._exports.remove_disk(disk.path) for disk in image.volumes}
        self._exports.remove_target(image.iqn)
        return disks
