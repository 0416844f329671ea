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
from playhead.catalogue import Catalogue, GroupRow
from playhead.copy import Copies
from playhead.errors import PlayheadError, conflict
from playhead.export import Exports
from playhead.image import Images
from playhead.point import resolve, show_time
from playhead.problem import from_native
from playhead.resources import Bookmark, Journal, Point, Policy, Rewind, Window
from playhead.resources import Group as GroupResource
from playhead.space import free_and_alert
from playhead.volume import Volumes

if TYPE_CHECKING:
    from playhead._native import PointDict, RewindDict
    from playhead.access import Access
    from playhead.array import Arrays

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
        self._space_low_bytes = space_low_bytes
        self.lock = threading.RLock()
        self._engine: _native.Group | None = None
        self._failure: PlayheadError | None = None
        self._exported = False
        self.volumes = Volumes(self, catalogue, exports, access, arrays)
        self.images = Images(self, exports, access)
        self.copies = Copies(self, catalogue, space_low_bytes)

    # Coming and going.

    def create(self, segment_bytes: int | None) -> None:
        """Makes the journal of a new group."""
        with self.lock:
            self._engine = _native.Group.create(str(self.directory), self.row.name, segment_bytes)
            self._engine.set_policy(*self.row.limits)

    def open(self) -> None:
        """Opens the journal. On failure the group stays, failed, and the others are none the worse."""
        with self.lock:
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
        """Offers all volumes and images to hosts."""
        with self.lock:
            self.copies.start(self._engine)
            if self._engine is None or self._exported:
                return
            self._access.keep_only(self.row.name, self._paths())
            self._exports.add_target(self.row.iqn)
            self.volumes.serve()
            self.images.serve()
            self._exported = True

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
        with self.lock:
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
        with self.lock:
            # Copies first: they take what the journal has, and say at its side how far they are.
            self.copies.stop()
            engine, self._engine = self._engine, None
            if engine is None:
                return
            self.volumes.close()
            self._failure = PlayheadError(
                "stopping", f"group {self.row.name} is being stopped", "start the service again"
            )
            try:
                engine.close()
            except NativeError as error:
                _log.error("group did not close cleanly", group=self.row.name, code=error.code, reason=error.message)

    def delete(self, force: bool) -> None:
        """Ends the group and removes its journal. Its bases must be dealt with before, volume by volume."""
        with self.lock:
            self.copies.refuse_if_any()
            if self._engine is not None:
                volumes = [volume["name"] for volume in self._engine.volumes()]
                if volumes:
                    raise conflict(
                        f"group {self.row.name} still has {len(volumes)} volume(s): {', '.join(volumes[:5])}",
                        f"delete each first: `playhead volume delete {self.row.name}/{volumes[0]} --keep-base` or `--delete-base`",
                    )
                for image in self._engine.images():
                    self.images.close(image["name"])
            elif not force:
                raise PlayheadError(
                    "failed",
                    f"group {self.row.name} is not in service, so whether it still holds data cannot be told",
                    "mend it and `playhead group retry` it, or delete it with --force: its journal is then lost",
                )
            self.volumes.warn_of_devices_left()
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
    def serves(self) -> bool:
        """Whether it is in service."""
        return self._engine is not None

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

    def tell_space_low(self) -> None:
        """Tells the hosts of all its volumes and images."""
        self._exports.space_low(self.row.iqn)
        self.images.tell_space_low([image["name"] for image in self.engine.images()])

    def journal(self) -> Journal:
        """The engine's numbers."""
        stats = self.engine.stats()
        window = Window(edge=Point.of(stats.pop("edge")), head=Point.of(stats.pop("head")))
        known = {key: value for key, value in stats.items() if key in Journal.model_fields}
        return Journal(group=self.row.name, directory=str(self.directory), window=window, **known)

    def head(self) -> Point:
        """The newest point, all acknowledged writes included."""
        return Point.of(self.engine.head())

    def resolve(self, at: str, engine: _native.Group | None = None) -> PointDict:
        """The point that a person's expression names, of production or as a copy knows it."""
        engine = engine or self.engine
        return resolve(
            at,
            group=self.row.name,
            head=engine.head,
            edge=lambda: engine.window()["edge"],
            at_lsn=engine.point_at_lsn,
            at_time=engine.point_at_time,
            bookmarks=engine.bookmarks,
        )

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

    # Going back.

    def rewind(self, to: str) -> Rewind:
        """Production goes back to a point. No data moves, nothing is lost: it can be undone."""
        with self.lock:
            self._refuse_to_move()
            point = self.resolve(to)
            return self._rewound(self.engine.rewind(point["lsn"]))

    def _refuse_to_move(self) -> None:
        if elsewhere := self.volumes.elsewhere():
            raise conflict(
                f"group {self.row.name} cannot be rewound: the production of volume {elsewhere[0]} lives elsewhere",
                "open an image of that point and copy from it",
            )

    def undo_rewind(self) -> Rewind:
        """Production returns to where it was before the last rewind."""
        with self.lock:
            self._refuse_to_move()
            return self._rewound(self.engine.undo_rewind())

    def rewinds(self) -> list[Rewind]:
        return [self._rewind(rewind) for rewind in self.engine.rewinds()]

    def _rewound(self, rewind: RewindDict) -> Rewind:
        result = self._rewind(rewind)
        _log.info("production moved", group=self.row.name, to=result.to.lsn, undo_lsn=result.undo_lsn)
        self._exports.changed(self.row.iqn)
        names_in_use = {self.row.iqn, *self.volumes.paths()}
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
        with self.lock:
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
                self.volumes.move()
            finally:
                self.open()
                self.export()
            _log.info("copy promoted", copy=f"{self.row.name}/{name}", directory=str(directory), left_behind=str(old))
            if self._failure is not None:
                raise self._failed()
            return self.resource()

    def _unexport_all(self) -> None:
        self.images.withdraw()
        if self._exported:
            self.volumes.withdraw()
            self._exports.remove_target(self.row.iqn)
        self._exported = False

    # The window.

    def set_policy(self, policy: Policy) -> GroupResource:
        """How much past is kept from now on."""
        with self.lock:
            engine = self.engine
            row = replace(self.row, **policy.model_dump())
            self._catalogue.set_policy(row)
            engine.set_policy(*row.limits)
            self.volumes.set_on_journal_failure(row.on_journal_failure)
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
