"""Content with the grain of real disks: files of this machine, odd lengths, holes, repetition."""

from __future__ import annotations

import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from playhead.lab.settings import KIB, MIB

HOLE_BYTES = 192 * KIB
"""After each file of 256 KiB or more, as a file system leaves them."""


@functools.lru_cache(maxsize=4)
def real(size_bytes: int) -> bytes:
    """That much of the files of the Python library, with holes between them."""
    parts: list[bytes] = []
    length = 0
    for path in _files(Path(sysconfig.get_path("stdlib"))):
        if length >= size_bytes:
            break
        part = path.read_bytes()
        padded = part.ljust(-(-len(part) // 4096) * 4096, b"\0")
        parts += [padded, bytes(HOLE_BYTES if len(part) >= MIB // 4 else 0)]
        length += len(padded) + len(parts[-1])
    whole = b"".join(parts)
    while len(whole) < size_bytes:
        whole += whole
    return whole[:size_bytes]


def _files(folder: Path) -> Iterator[Path]:
    """Folder by folder, as far as anybody asks: there are tens of thousands."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if path.is_file() and not path.is_symlink():
                yield path


def digest(data: bytes) -> str:
    """To compare and print."""
    return hashlib.sha256(data).hexdigest()[:12]
