"""Space: looks after the disks under the journals, and tells administrators and hosts before writes fail.

Nearly full is less than `space_low_bytes` free on the file system of a group's journal (by default a tenth of it), or a
journal over its limit, because something holds the trailing edge. When it comes up, the hosts of the group's volumes and images get the
unit attention THIN PROVISIONING SOFT THRESHOLD REACHED (SBC-4 4.7.3.8), those that have not switched it off, once; again only after it was over.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from playhead import log
from playhead._native import NativeError
from playhead.errors import PlayheadError
from playhead.sizes import show_size

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


class SpaceWatch:
    """The thread that looks."""

    def __init__(self, groups: Callable[[], Iterable[Group]]) -> None:
        self._groups = groups
        self._low: set[str] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="space", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception:  # noqa: BLE001 - the watch outlives a defect, and says so
                _log.exception("defect while looking after space")

    def look(self) -> None:
        """One round: tells hosts of what has come up since the last."""
        low = set()
        for group in self._groups():
            alert = group.space_alert()
            if alert is None:
                continue
            low.add(group.row.name)
            if group.row.name not in self._low:
                _log.info("space runs out", group=group.row.name, alert=alert)
                try:
                    group.tell_space_low()
                except (NativeError, PlayheadError) as error:
                    _log.info("hosts could not be told", group=group.row.name, reason=str(error))
        self._low = low
