"""Programs that the demo starts: found, run, and ended by their own process id."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PACKAGES = {"mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs"}
"""What must be there, and the Debian package that has it."""

WITH_FUSE = {
    "qemu-storage-daemon": "qemu-system-common and qemu-block-extra",
    "fuse2fs": "fuse2fs",
    "fusermount3": "fuse3",
}
WITHOUT_FUSE = {
    "qemu-img": "qemu-utils and qemu-block-extra",
    "qemu-io": "qemu-utils",
    "debugfs": "e2fsprogs",
}
"""And what else, depending on whether file systems can be mounted."""

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 20.0
RUN_TIMEOUT_S = 120.0
# Debian keeps mke2fs and e2fsck where an ordinary user's PATH does not look.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class DemoError(Exception):
    """The demo cannot go on; the text says what is wrong and what to do."""


def has_fuse() -> bool:
    """Whether file systems can be mounted by ordinary programs here."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError:
        return False
    return True


def missing(fuse: bool) -> list[str]:
    """What this machine lacks for the demo, with or without FUSE, each with how to get it."""
    return [
        f"the program {name} (Debian: apt-get install {package})"
        for name, package in (PACKAGES | (WITH_FUSE if fuse else WITHOUT_FUSE)).items()
        if shutil.which(name, path=SEARCH_PATH) is None
    ]


def run(name: str, *arguments: str | Path) -> str:
    """Runs a program to its end and returns what it printed; an exit code other than 0 is an error."""
    path = shutil.which(name, path=SEARCH_PATH) or name
    done = subprocess.run(
        [path, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise DemoError(f"{name} ended with code {done.returncode}:\n{done.stdout.strip()}")
    return done.stdout


@contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    is_up: Callable[[], bool],
    end: Callable[[], None] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that stays up for the length of the context. `end` asks it to go; without, SIGTERM does."""
    path = shutil.which(str(command[0]), path=SEARCH_PATH) or str(command[0])
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [path, *map(str, command[1:])],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the demo, which then ends what it started in order.
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:]
                raise DemoError(f"{command[0]} did not start; it said:\n{said.strip()}")
            time.sleep(0.01)
        yield process
    finally:
        if process.poll() is None:
            if end is not None:
                end()
            else:
                process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
