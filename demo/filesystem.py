"""File systems on LUNs, as this machine can have them: mounted, or copied out and back."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from demo import copied, mounted
from demo.programs import run


@dataclass(frozen=True)
class Host:
    """The host that uses the LUNs: a folder to work in, and whether it has FUSE."""

    work: Path
    fuse: bool

    def make_ext4(self, url: str, label: str) -> None:
        """Puts an empty ext4 on the LUN."""
        with self._as_file(url, writable=True) as file:
            run("mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-E", "root_owner", file)

    def directory(self, url: str, writable: bool = False) -> AbstractContextManager[Path]:
        """The files of the ext4 on the LUN. When the context ends, what was done to them is on the LUN, flushed."""
        if self.fuse:
            return mounted.directory(url, self.work, writable)
        return copied.directory(url, self.work, writable)

    def check(self, url: str) -> None:
        """A full e2fsck of the LUN that changes nothing. An error if the file system is not clean."""
        with self._as_file(url, writable=False) as file:
            run("e2fsck", "-fn", file)

    def _as_file(self, url: str, writable: bool) -> AbstractContextManager[Path]:
        if self.fuse:
            return mounted.as_file(url, self.work, writable)
        return copied.as_file(url, self.work, writable)
