"""Splitters of volumes whose production lives elsewhere: what is split, and how production and replica stand to each other.

Inside the group such a volume is an ordinary one, the replica; this module knows where its production is, and keeps the splitter that
stands before both. There are two kinds, and only what opens them and says where production is tells them apart: a file or block device of
this host, and a LUN of another array. A production that is not there at the start does not keep the group from being served: the volume is
lost to hosts until it is back, and its past can be opened all the same.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from playhead import _native, log
from playhead._native import FabricSplitter, HostSplitter, NativeError
from playhead.array import Arrays, FabricVolume
from playhead.array import paths as paths_of
from playhead.catalogue import SplitterRow
from playhead.errors import PlayheadError
from playhead.point import show_time
from playhead.resources import Fabric, Splitter

if TYPE_CHECKING:
    from playhead._native import Lun, SplitterDict
    from playhead.catalogue import OnJournalFailure

_log = log.get("splitter")

Production = SplitterRow | FabricVolume
"""Where the production of a volume is."""

NOT_OPEN: SplitterDict = {
    "state": "production-lost", "reason": None, "lag_bytes": 0, "since_ns": None, "resync_total_bytes": 0, "marked_bytes": 0,
}  # fmt: skip
"""What is known of a production that could not be opened."""


@dataclass(frozen=True)
class Split:
    """A volume with production elsewhere. Without `native` production could not be opened, and `reason` says why."""

    of: Production
    native: HostSplitter | FabricSplitter | None
    reason: str | None
    target: _native.Array | None = None
    """The target of another array that it is behind."""


class Splitters:
    """Those of one group."""

    def __init__(self, group: str, directory: Path, arrays: Arrays) -> None:
        self._group = group
        self._directory = directory
        self._arrays = arrays
        self._splits: dict[str, Split] = {}

    def __contains__(self, volume: str) -> bool:
        return volume in self._splits

    def names(self) -> list[str]:
        """The volumes with production elsewhere."""
        return sorted(self._splits)

    def of(self, volume: str) -> Production | None:
        """Where production is; none of a volume that is Playhead's own."""
        split = self._splits.get(volume)
        return split.of if split else None

    def on_array(self, volume: str) -> bool:
        """Whether production is on another array: only iSCSI hosts reach it."""
        return isinstance(self.of(volume), FabricVolume)

    def disk(self, volume: str) -> Lun | None:
        """What hosts use of such a volume; none while production is lost."""
        native = self._splits[volume].native
        return native.disk() if native else None

    def _map_path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.map"

    def open(
        self,
        engine: _native.Group,
        volume: str,
        of: Production,
        on_journal_failure: OnJournalFailure,
        physical_block_bytes: int,
    ) -> None:
        """Opens a splitter. Raises if production cannot be opened; a LUN of another array need not answer yet."""
        uuid = next(found["uuid"] for found in engine.volumes() if found["name"] == volume)
        self._directory.mkdir(mode=0o750, exist_ok=True)
        map_path = str(self._map_path(uuid))
        if isinstance(of, FabricVolume):
            target = self._arrays.target(of.array, of.target)
            fabric = FabricSplitter.open(
                engine, volume, target, of.lun, of.identity, of.reads_zeros, map_path, on_journal_failure
            )
            self._splits[volume] = Split(of, fabric, None, target)
        else:
            host = HostSplitter.open(engine, volume, of.path, map_path, on_journal_failure, physical_block_bytes)
            self._splits[volume] = Split(of, host, None)

    def open_or_lose(
        self,
        engine: _native.Group,
        volume: str,
        of: Production,
        on_journal_failure: OnJournalFailure,
        physical_block_bytes: int,
    ) -> None:
        """As `open`; a production that is not there is said, and does not keep the rest back."""
        try:
            self.open(engine, volume, of, on_journal_failure, physical_block_bytes)
        except (NativeError, PlayheadError) as error:
            reason = error.message if isinstance(error, NativeError) else error.detail
            self._splits[volume] = Split(of, None, reason)
            _log.error("production is lost", volume=f"{self._group}/{volume}", production=of.where, reason=reason)

    def forget(self, volume: str) -> None:
        """Closes a splitter, in order."""
        split = self._splits.pop(volume, None)
        if split and split.native:
            self._close(volume, split)

    def remove_map(self, uuid: str) -> None:
        """Removes a volume's change map: everything is compared if it ever gets a production again."""
        with contextlib.suppress(FileNotFoundError):
            self._map_path(uuid).unlink()

    def close(self) -> None:
        """Closes all, each in order: nothing is to be compared at the next start. Side by side, so that those of an array that does not
        answer wait for it together.
        """
        splits, self._splits = self._splits, {}
        opened = {volume: split for volume, split in splits.items() if split.native}
        with ThreadPoolExecutor(max_workers=len(opened) or 1, thread_name_prefix="close") as pool:
            for done in [pool.submit(self._close, volume, split) for volume, split in opened.items()]:
                done.result()

    def _close(self, volume: str, split: Split) -> None:
        assert split.native
        try:
            split.native.close()
        except NativeError as error:
            # Nothing is lost: what may differ stays marked, and is compared at the next start. Of another array that may be away, no wonder.
            say = _log.info if split.target else _log.warning
            say("splitter did not close cleanly", volume=f"{self._group}/{volume}", reason=error.message)

    def set_on_journal_failure(self, choice: OnJournalFailure) -> None:
        for split in self._splits.values():
            if split.native:
                split.native.set_on_journal_failure(choice)

    def compare_all(self, volume: str) -> None:
        """Reads all of production again and records what differs."""
        native = self._splits[volume].native
        if native:
            native.compare_all()

    def resource(self, volume: str) -> Splitter | None:
        """How it stands; none of a volume that is Playhead's own."""
        split = self._splits.get(volume)
        if split is None:
            return None
        status = split.native.status() if split.native else {**NOT_OPEN, "reason": split.reason}
        since_ns, total = status["since_ns"], status["resync_total_bytes"]
        return Splitter(
            kind=split.of.kind,
            production=split.of.where,
            state=status["state"],
            reason=status["reason"],
            lag_bytes=status["lag_bytes"],
            lag_s=max(0, time.time_ns() - since_ns) / 1e9 if since_ns else None,
            since=show_time(since_ns) if since_ns else None,
            resync_done_bytes=max(0, total - status["lag_bytes"]),
            resync_total_bytes=total,
            marked_bytes=status["marked_bytes"],
            fabric=_fabric(split.of, split.target) if isinstance(split.of, FabricVolume) else None,
        )

    def alerts(self) -> list[str]:
        """Those that are not synchronised and do not come to be so by themselves, each with what to do."""
        found = []
        for volume in self.names():
            split, splitter = self._splits.get(volume), self.resource(volume)
            if split is None or splitter is None or splitter.state == "synchronised":
                continue
            if splitter.reason or splitter.state in ("stopped", "tracking", "production-lost"):
                path = f"{self._group}/{volume}"
                reason = f": {splitter.reason}" if splitter.reason else ""
                found.append(f"volume {path} is {splitter.state}{reason}; {_next_step(path, split, splitter.state)}")
        return found


def _fabric(of: FabricVolume, target: _native.Array | None) -> Fabric:
    paths = paths_of(target) if target else []
    return Fabric(array=of.array, target=of.target, lun=of.lun, identity=of.identity, paths=paths)


def _next_step(path: str, split: Split, state: str) -> str:
    """What ends such a state."""
    if state in ("stopped", "tracking"):
        return "make room for the journal; if its medium has failed, mend it and restart the service"
    if isinstance(split.of, FabricVolume):
        see = f"see `playhead array show {split.of.array}`; "
        return see + ("put that right and restart the service" if split.native is None else "it goes on by itself")
    if state == "production-lost":
        return f"bring it back, then `playhead attach {path} PATH`"
    return f"mend {split.of.where} or the journal's medium; it goes on by itself"
