"""Copies of a group on other disks: what the catalogue says there should be, kept up by the engine, and their images exported.

The engine's thread does everything with data (`crates/journal/src/keep.rs`). Here is decided which copies there are, where, how much past they
keep and whether they take part; and a round every second brings what is exported in line with what the engine has open, since a
copy whose disk went away and came back is another object with the same images.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playhead import _native, log, names
from playhead._native import NativeError
from playhead.errors import PlayheadError, conflict, invalid, not_found
from playhead.point import show_time
from playhead.resources import Copy, Point, Window
from playhead.sizes import show_size
from playhead.space import free_and_alert
from playhead.watch import Watch

if TYPE_CHECKING:
    from playhead._native import ImageDict
    from playhead.catalogue import Catalogue
    from playhead.group import Group

LOOK_EVERY_S = 1.0
DRAIN_PATIENCE_S = 30.0
"""How long a promotion waits for the copy to take the last of a production that still serves."""
VERIFY_PATIENCE_S = 600.0
"""How long a verification waits for the copy to have the point."""

_log = log.get("copy")


@dataclass(frozen=True)
class CopyRow:
    """A copy as the catalogue knows it."""

    group: str
    name: str
    directory: str
    window_ns: int | None
    limit_bytes: int | None
    paused: bool
    created_ns: int


@dataclass
class Kept:
    """A copy in service."""

    row: CopyRow
    engine: _native.Copy
    looked_at: int = 0
    """The opening of the copy that the catalogue was last compared with; 0: none."""
    shown: set[str] = field(default_factory=set)
    """Its images that are exported."""
    hidden: set[str] = field(default_factory=set)
    """Its images that have the name of another of the group, and so are not."""


class Copies:
    """The copies of one group. Reading waits for nothing; what changes them takes the group's lock."""

    def __init__(self, group: Group, catalogue: Catalogue, space_low_bytes: int) -> None:
        self._group = group
        self._catalogue = catalogue
        self._space_low_bytes = space_low_bytes
        self._lock = threading.RLock()
        self._kept: dict[str, Kept] = {}
        self._source: _native.Group | None = None

    # Coming and going.

    def start(self, source: _native.Group | None) -> None:
        """Keeps every copy that the catalogue knows, of `source` or, while production is not in service, for its images alone."""
        with self._lock:
            self._source = source
            for row in self._rows():
                if row.name not in self._kept:
                    self._keep(row)

    def stop(self) -> None:
        """Lets go of all, and takes their images from hosts."""
        with self._lock:
            for kept in self._kept.values():
                self._unexport(kept)
                kept.engine.stop()
            self._kept = {}
            self._source = None

    def _keep(self, row: CopyRow) -> Kept:
        engine = _native.Copy.keep(self._source, row.directory, row.name, row.window_ns, row.limit_bytes, row.paused)
        kept = self._kept[row.name] = Kept(row, engine)
        return kept

    def _rows(self) -> list[CopyRow]:
        with self._catalogue.transaction() as db:
            rows = db.execute(
                "SELECT group_name, name, directory, window_ns, limit_bytes, paused, created_ns FROM copies "
                "WHERE group_name = ? ORDER BY name",
                (self._group.row.name,),
            ).fetchall()
        return [
            CopyRow(group, name, directory, window_ns, limit_bytes, bool(paused), created_ns)
            for group, name, directory, window_ns, limit_bytes, paused, created_ns in rows
        ]

    def add(self, name: str, directory: str, window_ns: int | None, limit_bytes: int | None) -> Copy:
        """A new copy in a directory of its own, or one that is there already."""
        names.check_copy(name)
        place = _checked(Path(directory), self._group.directory, f"{self._group.row.name}/{name}")
        with self._lock:
            source = self._group.engine
            if name in self._kept:
                raise conflict(f"group {self._group.row.name} has a copy {name} already", "choose another name")
            row = CopyRow(self._group.row.name, name, str(place), window_ns, limit_bytes, False, time.time_ns())
            source.forget_copy(name)
            with self._catalogue.transaction() as db:
                taken = db.execute("SELECT group_name, name FROM copies WHERE directory = ?", (str(place),)).fetchone()
                if taken:
                    raise conflict(f"{place} is the directory of copy {taken[0]}/{taken[1]}", "give another directory")
                db.execute(
                    "INSERT INTO copies VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (row.group, name, row.directory, window_ns, limit_bytes, 0, row.created_ns),
                )
            self._source = source
            self._keep(row)
            _log.info("copy added", copy=f"{row.group}/{name}", directory=row.directory)
            return self.show(name)

    def remove(self, name: str, delete_data: bool) -> None:
        """Ends a copy. What is in its directory stays unless told otherwise."""
        with self._lock:
            kept = self._get(name)
            if delete_data:
                self._refuse_to_discard(kept)
            self._unexport(kept)
            kept.engine.stop()
            del self._kept[name]
            self._forget(name)
            if self._source is not None:
                self._source.forget_copy(name)
            if delete_data:
                from playhead.group import remove_directory

                remove_directory(Path(kept.row.directory))
            _log.info("copy removed", copy=f"{kept.row.group}/{name}", data="deleted" if delete_data else "kept")

    def _refuse_to_discard(self, kept: Kept) -> None:
        """What hosts wrote to images of a copy is nowhere but in its directory."""
        path, scratches = f"{kept.row.group}/{kept.row.name}", Path(kept.row.directory) / "scratch"
        try:
            written = sorted(entry.name for entry in scratches.iterdir())
        except OSError:
            return
        if written:
            raise conflict(
                f"copy {path} has a writable image {written[0]}, and what was written to it is in {kept.row.directory}",
                f"close it first: `playhead image close {kept.row.group}/{written[0]}`"
                if kept.engine.group()
                else "bring the copy back and close the image, or remove the copy without --delete-data",
            )

    def _forget(self, name: str) -> None:
        with self._catalogue.transaction() as db:
            db.execute("DELETE FROM copies WHERE group_name = ? AND name = ?", (self._group.row.name, name))

    def change(
        self, name: str, paused: bool | None = None, window_ns: int | None = None, limit_bytes: int | None = None,
        policy: bool = False,
    ) -> Copy:  # fmt: skip
        """Pauses or resumes a copy, or (`policy`) says anew how much past it keeps."""
        with self._lock:
            kept = self._get(name)
            row = replace(kept.row, paused=kept.row.paused if paused is None else paused)
            if policy:
                row = replace(row, window_ns=window_ns, limit_bytes=limit_bytes)
            with self._catalogue.transaction() as db:
                db.execute(
                    "UPDATE copies SET paused = ?, window_ns = ?, limit_bytes = ? WHERE group_name = ? AND name = ?",
                    (int(row.paused), row.window_ns, row.limit_bytes, row.group, name),
                )
            kept.row = row
            kept.engine.pause(row.paused)
            kept.engine.set_policy(row.window_ns, row.limit_bytes)
            return self.show(name)

    def refuse_if_any(self) -> None:
        """A group with copies is not deleted."""
        if self._kept:
            first = next(iter(self._kept))
            raise conflict(
                f"group {self._group.row.name} still has {len(self._kept)} copy(ies): {', '.join(self._kept)}",
                f"remove each first: `playhead copy remove {self._group.row.name}/{first}`",
            )

    # What there is.

    def names(self) -> list[str]:
        return list(self._kept)

    def all(self) -> list[Copy]:
        """Every copy."""
        return [self._resource(kept) for kept in list(self._kept.values())]

    def show(self, name: str) -> Copy:
        return self._resource(self._get(name))

    def _get(self, name: str) -> Kept:
        kept = self._kept.get(name)
        if kept is None:
            raise not_found(
                f"group {self._group.row.name} has no copy {name[:80]!r}",
                "see `playhead copy list`, or make it with `playhead copy add`",
            )
        return kept

    def engine(self, name: str) -> _native.Group:
        """The copy as a group; raises while it is not consistent, or cannot be reached."""
        engine = self._get(name).engine.group()
        if engine is None:
            found = self.show(name)
            raise conflict(
                f"copy {found.path} is {found.state} and cannot be opened"
                + (f": {found.reason}" if found.reason else ""),
                "wait until it is synchronised: see `playhead copy show`",
            )
        return engine

    def _resource(self, kept: Kept) -> Copy:
        row, standing = kept.row, kept.engine.standing()
        free_bytes, space_alert = free_and_alert(Path(row.directory), self._space_low_bytes)
        state_alert = _alert(row, standing["state"], standing["reason"], standing["lag_bytes"])
        window, images, journal_bytes = None, [], None
        group = kept.engine.group()
        if group is not None:
            try:
                found = group.window()
                window = Window(edge=Point.of(found["edge"]), head=Point.of(found["head"]))
                images = [image["name"] for image in group.images()]
                journal_bytes = group.stats()["journal_bytes"]
            except NativeError:
                # It was let go of between two questions.
                window, images, journal_bytes = None, [], None
        return Copy(
            path=f"{row.group}/{row.name}",
            name=row.name,
            group=row.group,
            directory=row.directory,
            state=standing["state"],
            reason=standing["reason"],
            since=show_time(standing["since_ns"]),
            consistent=standing["consistent"],
            received_lsn=standing["received_lsn"],
            durable_lsn=standing["durable_lsn"],
            lag_bytes=standing["lag_bytes"],
            lag_s=None if standing["lag_ns"] is None else standing["lag_ns"] / 1e9,
            left_bytes=standing["left_bytes"],
            total_bytes=standing["total_bytes"],
            moved_bytes=standing["moved_bytes"],
            window=window,
            window_ns=row.window_ns,
            limit_bytes=row.limit_bytes,
            images=images,
            journal_bytes=journal_bytes,
            free_bytes=free_bytes,
            alert="; ".join(alert for alert in (state_alert, space_alert, _hidden(kept)) if alert) or None,
            created=show_time(row.created_ns),
        )

    def space_alerts(self) -> list[tuple[str, str]]:
        """Copies whose disks are nearly full, and what is to be said of them: (name, alert)."""
        found = []
        for kept in list(self._kept.values()):
            alert = free_and_alert(Path(kept.row.directory), self._space_low_bytes)[1]
            if alert is not None:
                found.append((kept.row.name, alert))
        return found

    def tell_space_low(self, name: str) -> None:
        """Tells the hosts that write to images of a copy."""
        group = self._get(name).engine.group()
        self._group.images.tell_space_low(
            [image["name"] for image in group.images() if image["writable"]] if group else []
        )

    # Images.

    def image_names(self) -> set[str]:
        """Of all images that are open on copies, reachable or not."""
        with self._catalogue.transaction() as db:
            rows = db.execute("SELECT image FROM copy_images WHERE group_name = ?", (self._group.row.name,)).fetchall()
        return {image for (image,) in rows}

    def images(self) -> list[tuple[str, _native.Group, ImageDict]]:
        """The open images of copies that can be reached: (copy, the copy as a group, image)."""
        found: list[tuple[str, _native.Group, ImageDict]] = []
        for name, kept in list(self._kept.items()):
            group = kept.engine.group()
            if group is not None:
                found += [(name, group, image) for image in group.images() if image["name"] not in kept.hidden]
        return found

    def open_image(self, copy: str, name: str, lsn: int, writable: bool, force: bool) -> ImageDict:
        """Opens an image on a copy and exports it. The catalogue first: who may see its disks must be kept from then on."""
        with self._lock:
            kept, engine = self._get(copy), self.engine(copy)
            if name in self.image_names():
                raise conflict(
                    f"a copy of group {self._group.row.name} has an open image {name}", "choose another name"
                )
            self._remember_image(copy, name)
            try:
                image = engine.open_image(name, lsn, writable, force)
            except NativeError:
                self._forget_image(name)
                raise
            try:
                self._group.images.export(image, engine)
            except (NativeError, PlayheadError):
                self._group.images.unexport(name)
                engine.close_image(name)
                self._forget_image(name)
                raise
            kept.shown.add(name)
            return image

    def close_image(self, copy: str, name: str) -> None:
        """Closes an image that hosts have been taken from."""
        with self._lock:
            # If it cannot be closed the next round offers it again.
            self._get(copy).shown.discard(name)
            self.engine(copy).close_image(name)
            self._forget_image(name)

    def _remember_image(self, copy: str, name: str) -> None:
        with self._catalogue.transaction() as db:
            db.execute("INSERT INTO copy_images VALUES (?, ?, ?)", (self._group.row.name, copy, name))

    def _forget_image(self, name: str) -> None:
        with self._catalogue.transaction() as db:
            db.execute("DELETE FROM copy_images WHERE group_name = ? AND image = ?", (self._group.row.name, name))

    def look(self) -> None:
        """One round: exports the images of a copy that came, takes those of one that went."""
        with self._lock:
            for kept in self._kept.values():
                group, opened = kept.engine.group(), kept.engine.standing()["opened"]
                if group is None or kept.looked_at != opened:
                    self._unexport(kept)
                if group is not None:
                    if kept.looked_at != opened:
                        self._forget_unopened(kept, group)
                        kept.looked_at = opened
                    self._show(kept, group)

    def _forget_unopened(self, kept: Kept, group: _native.Group) -> None:
        """A crash can come between the catalogue and the copy; the copy is right."""
        there = {image["name"] for image in group.images()}
        with self._catalogue.transaction() as db:
            rows = db.execute(
                "SELECT image FROM copy_images WHERE group_name = ? AND copy = ?", (kept.row.group, kept.row.name)
            ).fetchall()
        for (name,) in rows:
            if name not in there:
                self._forget_image(name)

    def _show(self, kept: Kept, group: _native.Group) -> None:
        """Exports images that are not exported yet, also those that came with the directory when the copy was added."""
        kept.hidden.clear()
        for image in group.images():
            name = image["name"]
            if name in kept.shown:
                continue
            with self._catalogue.transaction() as db:
                row = db.execute(
                    "SELECT copy FROM copy_images WHERE group_name = ? AND image = ?", (kept.row.group, name)
                ).fetchone()
            if row != (kept.row.name,):
                if row is not None or name in self._group.images.own_names():
                    kept.hidden.add(name)
                    continue
                self._remember_image(kept.row.name, name)
            self._group.images.export(image, group)
            kept.shown.add(name)

    def _unexport(self, kept: Kept) -> None:
        for name in kept.shown:
            self._group.images.unexport(name)
        kept.shown.clear()
        kept.looked_at = 0

    # Checking and taking over.

    def verify(self, name: str, progress: Callable[[int, int], bool]) -> dict[str, Any]:
        """Compares a copy with production as of production's present point, by hashes."""
        kept, source = self._get(name), self._group.engine
        source.flush()
        lsn = source.head()["lsn"]
        deadline = time.monotonic() + VERIFY_PATIENCE_S
        while (kept.engine.standing()["received_lsn"] or 0) < lsn or kept.engine.group() is None:
            if not progress(0, 0):
                raise PlayheadError(
                    "cancelled", f"the verification of copy {self._group.row.name}/{name} was cancelled"
                )
            if time.monotonic() > deadline:
                found = self.show(name)
                raise conflict(
                    f"copy {found.path} does not get to LSN {lsn}: it is {found.state}", "see `playhead copy show`"
                )
            time.sleep(0.05)
        compared = kept.engine.verify(source, lsn, progress)
        return {
            "copy": f"{self._group.row.name}/{name}",
            "point": Point.of(compared["point"]).model_dump(),
            "total_bytes": compared["total_bytes"],
            "hashed_bytes": compared["hashed_bytes"],
            "differing_blocks": compared["differing_blocks"],
            "differences": [
                {"volume": volume, "lba": lba, "count": count} for volume, lba, count in compared["differences"]
            ],
        }

    def check_promotable(self, name: str, *, serving: bool, while_serving: bool, allow_inconsistent: bool) -> Path:
        """Refuses what cannot, or should not, become production; else where it is. `serving`: production is in service, which
        `while_serving` says is known; `allow_inconsistent`: also if its newest points lie where a volume was being resynchronised.
        """
        found = self.show(name)
        if serving and not while_serving:
            raise conflict(
                f"production of group {found.group} is in service: promoting copy {found.path} takes its hosts to the copy, "
                "and what the copy does not have is lost to them",
                "stop the hosts, then promote with --while-serving",
            )
        out_of_step = self._get(name).engine.group() is not None and not found.consistent
        if out_of_step and not allow_inconsistent:
            raise conflict(
                f"copy {found.path} ends where a volume was not in step with its production: {found.reason or found.state}",
                "wait until it is consistent, or choose another copy; with --allow-inconsistent it becomes production as it is, and the "
                "volume is to be compared with its production",
            )
        if not found.consistent and not out_of_step:
            raise conflict(
                f"copy {found.path} is {found.state}: it is not consistent, so it cannot become production"
                + (f" ({found.reason})" if found.reason else ""),
                "let its synchronisation finish, or choose another copy",
            )
        return Path(found.directory)

    def drain(self, name: str) -> None:
        """Waits a while for the copy to have all that production has; hosts are held off meanwhile."""
        kept = self._get(name)
        kept.engine.pause(False)
        deadline = time.monotonic() + DRAIN_PATIENCE_S
        while kept.engine.standing()["lag_bytes"] and time.monotonic() < deadline:
            if kept.engine.standing()["state"] in ("unreachable", "diverged", "failed"):
                break
            time.sleep(0.02)

    def promoted(self, name: str) -> None:
        """Writes down that a copy is production now; both in one transaction."""
        with self._catalogue.transaction() as db:
            row = db.execute(
                "SELECT directory FROM copies WHERE group_name = ? AND name = ?", (self._group.row.name, name)
            ).fetchone()
            db.execute("DELETE FROM copies WHERE group_name = ? AND name = ?", (self._group.row.name, name))
            db.execute("UPDATE groups SET directory = ? WHERE name = ?", (row[0], self._group.row.name))


def _hidden(kept: Kept) -> str | None:
    if not kept.hidden:
        return None
    first = min(kept.hidden)
    return f"its image {first} is not exported, since the group has another of that name: `playhead image close {kept.row.group}/{first}`, then it is"


def _alert(row: CopyRow, state: str, reason: str | None, lag_bytes: int | None) -> str | None:
    """What an administrator should know of a copy."""
    if state in ("unreachable", "diverged", "failed") or (state == "paused" and not row.paused):
        return f"it is {state}" + (f": {reason}" if reason else "")
    if state == "resynchronising":
        return "it is being synchronised anew and cannot be promoted until that is over"
    if state == "paused":
        return f"it is paused, {show_size(lag_bytes or 0)} behind; `playhead copy resume {row.group}/{row.name}`"
    return None


def _checked(place: Path, production: Path, path: str) -> Path:
    if not place.is_absolute():
        raise invalid(f"copy {path}: {str(place)!r} is not an absolute path", "write it from / on")
    place = Path(*place.parts)
    if ".." in place.parts:
        raise invalid(f"copy {path}: {str(place)!r} goes through '..'", "write the path itself")
    if place == production or production in place.parents or place in production.parents:
        raise conflict(f"copy {path}: {place} is production's own place", "give a directory on another disk")
    try:
        inside = {entry.name for entry in place.iterdir()} if place.exists() else set()
    except OSError as error:
        raise PlayheadError("io", f"copy {path}: {place}: {error.strerror}", "give another directory") from error
    if inside - {"lost+found"} and not inside & {"superblock", "sync"}:
        raise conflict(f"copy {path}: {place} is not empty", "give a directory of its own")
    return place


def copy_watch(groups: Callable[[], Iterable[Group]]) -> Watch:
    """Looks after what is exported of the copies of all groups."""

    def look() -> None:
        for group in groups():
            try:
                group.copies.look()
            except (NativeError, PlayheadError) as error:
                _log.info("images of copies are not as they should be yet", group=group.row.name, reason=str(error))

    return Watch("copies", LOOK_EVERY_S, look)
