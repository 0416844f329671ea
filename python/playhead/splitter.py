"""Splitters of volumes whose production lives elsewhere: what is attached, and how production and replica stand to each other.

Inside the group such a volume is an ordinary one, the replica; this module knows where its production is, and keeps the splitter that
stands before both. A production that is not there at the start does not keep the group from being served: the volume is lost to hosts until it
is attached again, and its past can be opened all the same.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from playhead import _native, log
from playhead._native import HostSplitter, NativeError
from playhead.point import show_time
from playhead.resources import Splitter

if TYPE_CHECKING:
    from playhead._native import Lun
    from playhead.catalogue import OnJournalFailure, SplitterRow

_log = log.get("splitter")

ALERTING = ("tracking", "stopped", "production-lost")
"""States that an administrator must end."""


@dataclass(frozen=True)
class Attached:
    """A volume with production elsewhere. Without `native` production could not be opened, and `reason` says why."""

    row: SplitterRow
    native: HostSplitter | None
    reason: str | None

    @property
    def disk(self) -> Lun | None:
        """What hosts use; none while production is lost."""
        return self.native.disk() if self.native else None


class Splitters:
    """Those of one group."""

    def __init__(self, group: str, directory: Path) -> None:
        self._group = group
        self._directory = directory
        self._attached: dict[str, Attached] = {}

    def __contains__(self, volume: str) -> bool:
        return volume in self._attached

    def names(self) -> list[str]:
        """The volumes that are attached."""
        return sorted(self._attached)

    def disk(self, volume: str) -> Lun | None:
        """What hosts use of an attached volume; none while production is lost."""
        return self._attached[volume].disk

    def _map_path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.map"

    def open(
        self,
        engine: _native.Group,
        volume: str,
        row: SplitterRow,
        on_journal_failure: OnJournalFailure,
        physical_block_bytes: int,
    ) -> None:
        """Opens a splitter. Raises if production cannot be opened."""
        uuid = next(found["uuid"] for found in engine.volumes() if found["name"] == volume)
        self._directory.mkdir(mode=0o750, exist_ok=True)
        native = HostSplitter.open(
            engine, volume, row.path, str(self._map_path(uuid)), on_journal_failure, physical_block_bytes
        )
        self._attached[volume] = Attached(row, native, None)

    def open_or_lose(
        self,
        engine: _native.Group,
        volume: str,
        row: SplitterRow,
        on_journal_failure: OnJournalFailure,
        physical_block_bytes: int,
    ) -> None:
        """As `open`; a production that is not there is said, and does not keep the rest back."""
        try:
            self.open(engine, volume, row, on_journal_failure, physical_block_bytes)
        except NativeError as error:
            self._attached[volume] = Attached(row, None, error.message)
            _log.error("production is lost", volume=f"{self._group}/{volume}", path=row.path, reason=error.message)

    def forget(self, volume: str) -> None:
        """Closes a splitter, in order."""
        attached = self._attached.pop(volume, None)
        if attached and attached.native:
            self._close(volume, attached.native)

    def remove_map(self, uuid: str) -> None:
        """Removes a volume's change map: everything is compared if it is ever attached again."""
        with contextlib.suppress(FileNotFoundError):
            self._map_path(uuid).unlink()

    def close(self) -> None:
        """Closes all, in order: nothing is to be compared at the next start."""
        for volume in self.names():
            self.forget(volume)

    def _close(self, volume: str, native: HostSplitter) -> None:
        try:
            native.close()
        except NativeError as error:
            _log.warning("splitter did not close cleanly", volume=f"{self._group}/{volume}", reason=error.message)

    def set_on_journal_failure(self, choice: OnJournalFailure) -> None:
        for attached in self._attached.values():
            if attached.native:
                attached.native.set_on_journal_failure(choice)

    def compare_all(self, volume: str) -> None:
        """Reads all of production again and records what differs."""
        native = self._attached[volume].native
        if native:
            native.compare_all()

    def resource(self, volume: str) -> Splitter | None:
        """How it stands; none of a volume that is Playhead's own."""
        attached = self._attached.get(volume)
        if attached is None:
            return None
        row = attached.row
        if attached.native is None:
            return Splitter(
                kind=row.kind, production=row.path, state="production-lost", reason=attached.reason, lag_bytes=0, lag_s=None,
                since=None, resync_done_bytes=0, resync_total_bytes=0, marked_bytes=0,
            )  # fmt: skip
        status = attached.native.status()
        since_ns, total = status["since_ns"], status["resync_total_bytes"]
        return Splitter(
            kind=row.kind,
            production=row.path,
            state=status["state"],
            reason=status["reason"],
            lag_bytes=status["lag_bytes"],
            lag_s=max(0, time.time_ns() - since_ns) / 1e9 if since_ns else None,
            since=show_time(since_ns) if since_ns else None,
            resync_done_bytes=max(0, total - status["lag_bytes"]),
            resync_total_bytes=total,
            marked_bytes=status["marked_bytes"],
        )

    def alerts(self) -> list[str]:
        """What an administrator should know."""
        found = []
        for volume in self.names():
            splitter = self.resource(volume)
            if splitter and splitter.state in ALERTING:
                step = (
                    f"; then `playhead attach {self._group}/{volume} PATH`"
                    if splitter.state == "production-lost"
                    else ""
                )
                found.append(f"volume {volume}: {splitter.state}: {splitter.reason}{step}")
        return found
