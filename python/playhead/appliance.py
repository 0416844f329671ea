"""The appliance: the store, the groups and the front ends of one process, from start to stop."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from playhead import _native, log, names
from playhead._native import NativeError
from playhead.access import Access
from playhead.array import Arrays, FabricVolume, Identity
from playhead.catalogue import Catalogue, GroupRow
from playhead.copy import copy_watch
from playhead.errors import PlayheadError, conflict, not_found
from playhead.export import Exports
from playhead.group import Group, remove_directory
from playhead.job import Jobs
from playhead.node import Settings
from playhead.point import show_time
from playhead.resources import Copy, Disk, Image, Policy, Service, Session, Status, Target, Volume
from playhead.space import space_watch
from playhead.store import Store

_log = log.get("appliance")


class Appliance:
    """Everything that runs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.jobs = Jobs()
        self.api_address = settings.api.text
        self._lock = threading.Lock()
        self._groups: dict[str, Group] = {}
        self._watches = (space_watch(self.groups), copy_watch(self.groups))
        self._started_ns = time.time_ns()
        self.store = Store(settings.store)
        try:
            self._catalogue = Catalogue(self.store.catalogue)
            self.exports = Exports(settings, self.store.reservations())
            self.access = Access(self._catalogue, settings, self.exports)
            self.arrays = Arrays(self._catalogue, f"{settings.iqn_prefix}:initiator")
        except BaseException:
            self.store.close()
            raise

    def start(self) -> None:
        """Opens every group and exports what is in it. A group that fails does not keep the others back."""
        raise_file_limit()
        for row in self._catalogue.groups():
            group = self._settle_row(row)
            if group:
                self._groups[row.name] = group
        with ThreadPoolExecutor(max_workers=4, thread_name_prefix="open") as pool:
            for done in [pool.submit(group.open) for group in self._groups.values()]:
                done.result()
        # Listening comes last: a host that comes back finds everything there.
        self.exports.listen()
        for group in self._groups.values():
            group.export()
        self.exports.open()
        for watch in self._watches:
            watch.start()
        _log.info("serving", store=str(self.store.path), groups=len(self._groups))

    def _settle_row(self, row: GroupRow) -> Group | None:
        """Finishes what a crash left half done; the group, if there is one."""
        directory = self.store.groups / row.name
        if row.state == "deleting":
            remove_directory(directory)
            self._catalogue.remove_group(row.name)
            return None
        group = self._group(row, directory)
        if row.state == "creating":
            # Nobody was told that it exists, so nothing can be in it. Empty or half made, it goes.
            remove_directory(directory)
            self._catalogue.remove_group(row.name)
            return None
        return group

    def _group(self, row: GroupRow, directory: Path) -> Group:
        directory = Path(row.directory) if row.directory else directory
        return Group(
            row, directory, self._catalogue, self.exports, self.access, self.arrays, self.settings.space_low_bytes
        )

    def stop(self) -> None:
        """Ends everything in order, within about the setting's deadline: sessions, jobs, groups, catalogue, store."""
        patience = self.settings.stop_deadline_s
        for watch in self._watches:
            watch.stop()
        self.jobs.stop(patience / 4)
        self.exports.stop(patience / 2)
        groups = self.groups()
        # Side by side: what one waits for, an array that does not answer, say, is as a rule what others wait for too.
        with ThreadPoolExecutor(max_workers=len(groups) or 1, thread_name_prefix="close") as pool:
            for done in [pool.submit(group.close) for group in groups]:
                done.result()
        self._catalogue.close()
        self.store.close()
        _log.info("stopped", store=str(self.store.path))

    # Groups.

    def groups(self) -> list[Group]:
        with self._lock:
            return [self._groups[name] for name in sorted(self._groups)]

    def group(self, name: str) -> Group:
        with self._lock:
            group = self._groups.get(name)
        if group is None:
            raise not_found(
                f"there is no group {name[:80]!r}", "see `playhead group list`, or make it with `playhead group create`"
            )
        return group

    def create_group(self, name: str, policy: Policy) -> Group:
        """A new, empty group."""
        names.check_group(name)
        directory = self.store.groups / name
        with self._lock:
            if name in self._groups:
                raise conflict(f"group {name} exists already", "choose another name")
            if directory.exists():
                raise conflict(
                    f"{directory} is there, but the catalogue knows no group {name}",
                    "move that directory away, or choose another name",
                )
            row = GroupRow(
                name=name,
                iqn=self.exports.iqn(name),
                state="creating",
                created_ns=time.time_ns(),
                **policy.model_dump(),
            )
            group = self._group(row, directory)
            self._catalogue.add_group(row)
            try:
                group.create(self.settings.segment_bytes or None)
                self._catalogue.set_group_state(name, "ready")
            except BaseException:
                group.close()
                remove_directory(directory)
                self._catalogue.remove_group(name)
                raise
            group.export()
            self._groups[name] = group
        _log.info("group created", group=name, iqn=row.iqn)
        return group

    def delete_group(self, name: str, force: bool) -> None:
        """Removes an empty group; a failed one only with `force`."""
        group = self.group(name)
        group.delete(force)
        with self._lock:
            self._groups.pop(name, None)
        _log.info("group deleted", group=name)

    def protect_lun(self, group: Group, name: str, array: str, target: str, number: int, identity: Identity) -> Volume:
        """A volume of `group` whose production is a LUN of an array."""
        names.check_volume(name)
        lun = self.arrays.lun(array, target, number)
        of = FabricVolume(array, target, number, identity, lun["reads_zeros"])
        return group.volumes.follow(name, of, lun["block_count"])

    # What there is to see.

    def targets(self) -> list[Target]:
        """Everything exported, by IQN, with who uses it."""
        sessions = self.exports.sessions()
        targets: list[Target] = []
        for group in self.groups():
            try:
                volumes, images = group.volumes.all(), group.images.all()
            except PlayheadError:
                continue
            targets.append(self._target(group.row.iqn, group.row.name, None, list(volumes)))
            targets += [self._target(image.iqn, group.row.name, image.name, image.volumes) for image in images]
        for target in targets:
            mine = {target.iqn, *(disk.path for disk in target.disks)}
            target.sessions = [session for session in sessions if session.name in mine]
        return targets

    def _target(self, iqn: str, group: str, image: str | None, disks: list[Disk]) -> Target:
        return Target(
            iqn=iqn, group=group, image=image, redirection=self.access.redirection(iqn), disks=disks, sessions=[]
        )

    def target(self, iqn: str) -> Target:
        """One target."""
        for target in self.targets():
            if target.iqn == iqn:
                return target
        raise not_found(f"there is no target {iqn[:230]!r}", "see `playhead target list`")

    def volumes(self) -> list[Volume]:
        """The volumes of all groups in service."""
        found: list[Volume] = []
        for group in self.groups():
            try:
                found += group.volumes.all()
            except PlayheadError as error:
                # A failed group shows in the list of groups; its volumes are not known.
                if error.code not in ("failed", "stopping"):
                    raise
        return found

    def images(self) -> list[Image]:
        """The open images of all groups in service."""
        found: list[Image] = []
        for group in self.groups():
            try:
                found += group.images.all()
            except PlayheadError as error:
                if error.code not in ("failed", "stopping"):
                    raise
        return found

    def copies(self) -> list[Copy]:
        """The copies of all groups."""
        return [copy for group in self.groups() for copy in group.copies.all()]

    def sessions(self) -> list[Session]:
        return self.exports.sessions()

    def service(self) -> Service:
        usage = shutil.disk_usage(self.store.path)
        portals, nbd = [portal.text for portal in self.exports.iscsi_portals], self.exports.nbd_address
        return Service(
            version=_native.version(),
            store=str(self.store.path),
            store_free_bytes=usage.free,
            store_size_bytes=usage.total,
            iscsi=portals[0] if portals else None,
            iscsi_portals=portals,
            nbd=nbd.text if nbd else None,
            api=self.api_address,
            started=show_time(self._started_ns),
            pid=os.getpid(),
        )

    def status(self) -> Status:
        """One page about everything."""
        groups = [group.resource() for group in self.groups()]
        alerts = [f"group {g.name} is not in service: {g.reason}; {g.next_step}" for g in groups if g.state == "failed"]
        alerts += [f"group {g.name}: {g.alert}" for g in groups if g.alert]
        alerts += [alert for group in self.groups() for alert in (*group.volumes.alerts(), *group.images.alerts())]
        copies = self.copies()
        alerts += [f"copy {copy.path}: {copy.alert}" for copy in copies if copy.alert]
        return Status(
            service=self.service(),
            groups=groups,
            copies=copies,
            sessions=self.sessions(),
            jobs=self.jobs.list(),
            alerts=alerts,
        )


def raise_file_limit() -> None:
    """Sessions, segments and bases are file descriptors: take as many as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            _log.info("the limit of open files stays", soft=soft, hard=hard, reason=str(error))


def explain(error: Exception) -> PlayheadError:
    """Any error of starting, as one that can be shown in a line."""
    if isinstance(error, PlayheadError):
        return error
    if isinstance(error, NativeError):
        return PlayheadError(error.code, error.message)
    raise error
