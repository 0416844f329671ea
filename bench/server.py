"""What every server under test, ours or a peer's, can do for a benchmark."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path

from bench.paths import MissingError
from bench.processes import stop

# fio's libiscsi engine sends SYNCHRONIZE CACHE with the LUN's bytes for its blocks, cut to 32 bits:
# in a multiple of 4 GiB that is 0, which means all; in any other size it is beyond the end.
LUN_BYTES = 4 << 30


class Server(ABC):
    """A server under test: one process, one LUN, one or more URLs to reach it at.

    `directory` is this server's own, on the file system all servers share.
    """

    name: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory / self.name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def launch(self) -> dict[str, str]:
        """Starts the process with an empty LUN; its URLs, by protocol: "iscsi", "nbd"."""

    @abstractmethod
    def version(self) -> str:
        """What the program calls its version."""

    def halt(self) -> None:
        """Ends the process."""
        if self._process is not None:
            stop(self._process)
            self._process = None

    def check_alive(self) -> None:
        """Raises `MissingError` with the end of the log when the process has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise MissingError(f"{self.name} ended with {self._process.returncode}:\n{tail}")

    def dirty_again(self, region_bytes: int) -> None:  # noqa: B027
        """Makes rewriting the region's first bytes as cheap as in a load that has run for long.

        Nothing to do for a server that does not write in place.
        """

    def slide(self) -> None:  # noqa: B027
        """Has the server give up its past as fast as it makes it; for one that keeps none, nothing."""

    def rest(self) -> None:  # noqa: B027
        """Called before each run, off the clock: time for whatever a server does at rest."""

    def wipe(self) -> None:
        """Removes the LUN and everything else of this server; the process is down."""
        for path in sorted(self.directory.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()

    @property
    def pid(self) -> int:
        """The process whose CPU time is the server's."""
        if self._process is None:
            raise MissingError(f"{self.name} is not running")
        return self._process.pid

    def sync(self) -> None:
        """Has everything in this server's folder written to disk."""
        for path in self.directory.rglob("*"):
            try:
                file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:  # the server removed it meanwhile
                continue
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def stored_bytes(self) -> int:
        """Disk space in use by this server's folder."""
        total = 0
        for path in self.directory.rglob("*"):
            try:
                total += path.lstat().st_blocks * 512
            except FileNotFoundError:  # the server removed it meanwhile
                continue
        return total
