"""A watch: the thread that looks after something every so often, for as long as the service runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from playhead import log

_log = log.get("watch")


class Watch:
    """Calls `look` every `every_s` seconds. It outlives a defect of the look, and says so."""

    def __init__(self, name: str, every_s: float, look: Callable[[], None]) -> None:
        self._name, self._every_s, self._look = name, every_s, look
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for the look under way. One that was never started ends too."""
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            try:
                self._look()
            except Exception:  # noqa: BLE001 - the next look may go well
                _log.exception("defect while looking", watch=self._name)
