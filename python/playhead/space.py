"""Space: looks after the disks under the journals, and tells administrators and hosts before writes fail.

Nearly full is less than `space_low_bytes` free on the file system of a group's journal, or of a copy's (by default a tenth of it), or a
journal over its limit, because something holds the trailing edge. When it comes up, the hosts of the group's volumes and images get the
unit attention THIN PROVISIONING SOFT THRESHOLD REACHED (SBC-4 4.7.3.8), those that have not switched it off, once; again only after it was over.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from playhead import log
from playhead._native import NativeError
from playhead.errors import PlayheadError
from playhead.sizes import show_size
from playhead.watch import Watch

if TYPE_CHECKING:
    from playhead.group import Group

LOOK_EVERY_S = 2.0
SHARE_LOW = 10
"""A tenth: what mode page 1C/02 tells hosts (SBC-4 6.5.8)."""

_log = log.get("space")


def free_and_alert(directory: Path, low_bytes: int) -> tuple[int | None, str | None]:
    """Bytes free where a journal lies, and what is to be said of it."""
    try:
        usage = shutil.disk_usage(directory)
    except OSError:
        # A directory that cannot be asked is the group's own trouble, and is said there.
        return None, None
    threshold = low_bytes or usage.total // SHARE_LOW
    if usage.free >= threshold:
        return usage.free, None
    return usage.free, (
        f"the disk of its journal is nearly full: {show_size(usage.free)} free, less than {show_size(threshold)}; "
        "make room, shorten the window, or close images"
    )


class Space:
    """What has come up, so that it is told once."""

    def __init__(self, groups: Callable[[], Iterable[Group]]) -> None:
        self._groups = groups
        self._low: set[str] = set()

    def look(self) -> None:
        """One round: tells of what has come up since the last, hosts too. Of a copy's, those that write to its images."""
        low = set()
        for group in self._groups():
            if (alert := group.space_alert()) is not None:
                low.add(group.row.name)
                if group.row.name not in self._low:
                    _log.info("space runs out", group=group.row.name, alert=alert)
                    self._tell_hosts(group.tell_space_low)
            for copy, alert in group.copies.space_alerts():
                path = f"{group.row.name}/{copy}"
                low.add(path)
                if path not in self._low:
                    _log.info("space runs out", copy=path, alert=alert)
                    self._tell_hosts(partial(group.copies.tell_space_low, copy))
        self._low = low

    @staticmethod
    def _tell_hosts(tell: Callable[[], None]) -> None:
        try:
            tell()
        except (NativeError, PlayheadError) as error:
            _log.info("hosts could not be told", reason=str(error))


def space_watch(groups: Callable[[], Iterable[Group]]) -> Watch:
    """Looks after the disks of all groups and copies."""
    return Watch("space", LOOK_EVERY_S, Space(groups).look)
