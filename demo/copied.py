"""A LUN as an ordinary directory where there is no /dev/fuse: copied out over iSCSI, and what changed written back.

qemu-img reads the LUN into a file, debugfs takes the files out of the ext4 in it and puts changed ones back, and qemu-io writes the
changed stretches of the file to the LUN. Slower than a mount and less like a host, but every byte goes the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

from demo.contents import checksums
from demo.programs import run

CHUNK_BYTES = 64 << 10
PIECE_CHUNKS_MAX = 64
"""A stretch written back at once, at most."""

_numbers = itertools.count(1)


@contextlib.contextmanager
def as_file(url: str, work: Path, writable: bool) -> Iterator[Path]:
    """The LUN's blocks in a file of this machine. Afterwards what changed in it is on the LUN, and flushed."""
    file = work / f"copy-{next(_numbers)}"
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", url, file)
    before = _chunks(file)
    yield file
    if writable:
        _write_back(url, file, before)
    file.unlink()


def _chunks(file: Path) -> list[bytes]:
    found = []
    with file.open("rb") as data:
        while chunk := data.read(CHUNK_BYTES):
            found.append(hashlib.sha256(chunk).digest())
    return found


def _write_back(url: str, file: Path, before: list[bytes]) -> None:
    after = _chunks(file)
    changed = [number for number, digest in enumerate(after) if digest != before[number]]
    commands: list[str] = []
    pieces: list[Path] = []
    with file.open("rb") as data:
        while changed:
            first = changed[0]
            count = 0
            while changed and changed[0] == first + count and count < PIECE_CHUNKS_MAX:
                changed.pop(0)
                count += 1
            data.seek(first * CHUNK_BYTES)
            content = data.read(count * CHUNK_BYTES)
            piece = file.with_name(f"{file.name}.{first}")
            piece.write_bytes(content)
            pieces.append(piece)
            commands += ["-c", f"write -s {piece} {first * CHUNK_BYTES} {len(content)}"]
    run("qemu-io", "-f", "raw", *commands, "-c", "flush", url)
    for piece in pieces:
        piece.unlink()


@contextlib.contextmanager
def directory(url: str, work: Path, writable: bool) -> Iterator[Path]:
    """The files of the ext4 on the LUN. Afterwards what was done to them is done in the ext4."""
    with as_file(url, work, writable) as file:
        place = work / f"{file.name}.files"
        place.mkdir()
        run("debugfs", "-R", f"rdump / {place}", file)
        before = checksums(place)
        yield place
        if writable:
            _put_back(file, place, before)
        shutil.rmtree(place)


def _put_back(file: Path, place: Path, before: dict[str, str]) -> None:
    after = checksums(place)
    script = [f"rm /{name}" for name in before if after.get(name) != before[name]]
    changed = [name for name in after if after[name] != before.get(name)]
    folders = {parent for name in changed for parent in Path(name).parents} - {Path()}
    known = {parent for name in before for parent in Path(name).parents}
    script += [f"mkdir /{folder}" for folder in sorted(folders - known)]
    script += [f"write {place / name} /{name}" for name in changed]
    commands = file.with_name(f"{file.name}.debugfs")
    commands.write_text("\n".join(script) + "\n")
    run("debugfs", "-w", "-f", commands, file)
    commands.unlink()
