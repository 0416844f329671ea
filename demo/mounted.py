"""A LUN as an ordinary directory, with no privilege but /dev/fuse; without even that see `copied`.

qemu-storage-daemon logs in to the target over iSCSI and shows the LUN as a file; fuse2fs mounts the ext4 in that file. So
everything that programs do in the directory crosses the wire as SCSI commands, as it would from a host.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from demo.programs import DemoError, run, running

_numbers = itertools.count(1)


@contextlib.contextmanager
def as_file(url: str, work: Path, writable: bool) -> Iterator[Path]:
    """The LUN at an iscsi:// URL, as a file."""
    parts = urlsplit(url)
    _, iqn, lun = parts.path.split("/")
    number = next(_numbers)
    file = work / f"lun-{number}"
    file.touch()
    here = work.stat().st_dev
    mode = "off" if writable else "on"
    command = [
        "qemu-storage-daemon",
        "--blockdev",
        f"driver=iscsi,node-name=lun,transport=tcp,portal={parts.netloc},target={unquote(iqn)},lun={lun},"
        f"read-only={mode}",
        "--export",
        f"type=fuse,id=file,node-name=lun,mountpoint={file},writable={'on' if writable else 'off'}",
    ]
    with running(command, work / f"lun-{number}.log", lambda: file.stat().st_dev != here):
        yield file
    file.unlink()


@contextlib.contextmanager
def directory(url: str, work: Path, writable: bool) -> Iterator[Path]:
    """The ext4 on the LUN, mounted; afterwards it is unmounted, flushed and logged out from."""
    with as_file(url, work, writable) as file:
        place = work / f"{file.name}.mnt"
        place.mkdir()
        options = "fakeroot" if writable else "fakeroot,ro"

        def leave() -> None:
            # A file that is just being closed keeps a mount busy for a moment.
            for last in (False,) * 20 + (True,):
                try:
                    run("fusermount3", "-u", place)
                except DemoError:
                    if last:
                        run("fusermount3", "-u", "-z", place)
                else:
                    return

        here = place.stat().st_dev
        command: list[str | Path] = ["fuse2fs", "-f", "-o", options, file, place]
        with running(
            command, work / f"{file.name}.log", lambda: place.stat().st_dev != here, leave
        ):
            yield place
        place.rmdir()
