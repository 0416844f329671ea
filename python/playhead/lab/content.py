"""Content with the grain of real disks: files of this machine, odd lengths, holes, repetition."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

from playhead.lab.settings import KIB, MIB

HOLE_BYTES = 192 * KIB
"""After each file of 256 KiB or more, as a file system leaves them."""


def real(size_bytes: int) -> bytes:
    """That much of the files of the Python library, with holes between them."""
    parts: list[bytes] = []
    length = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*")):
        if length >= size_bytes:
            break
        if not path.is_file() or path.is_symlink():
            continue
        part = path.read_bytes()
        parts.append(part.ljust(-(-len(part) // 4096) * 4096, b"\0"))
        if len(part) >= MIB // 4:
            parts.append(bytes(HOLE_BYTES))
        length += len(parts[-1]) + len(part)
    whole = b"".join(parts)
    while len(whole) < size_bytes:
        whole += whole
    return whole[:size_bytes]


def digest(data: bytes) -> str:
    """To compare and print."""
    return hashlib.sha256(data).hexdigest()[:12]
