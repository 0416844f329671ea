"""Reading and writing patterns with qemu-io, over either protocol: an ordinary client that knows nothing of us."""

from __future__ import annotations

import subprocess

TIMEOUT_S = 120.0


class IoFailedError(Exception):
    """qemu-io could not do it, or read something else."""


def qemu_io(url: str, *commands: str, read_only: bool = False) -> str:
    """Runs qemu-io commands on a URL; raises if one fails or a pattern is not there."""
    arguments = ["qemu-io", "-f", "raw", *(["-r"] if read_only else [])]
    for command in commands:
        arguments += ["-c", command]
    done = subprocess.run(
        [*arguments, url], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
    )
    output = done.stdout + done.stderr
    if done.returncode != 0 or "Pattern verification failed" in output or "error:" in output.lower():
        raise IoFailedError(f"{commands} on {url}: {output}")
    return output


def write(url: str, pattern: int, offset: str = "0", length: str = "1M") -> None:
    """Fills a stretch with a byte and flushes."""
    qemu_io(url, f"write -P {pattern} {offset} {length}", "flush")


def check(url: str, pattern: int, offset: str = "0", length: str = "1M", read_only: bool = False) -> None:
    """The stretch holds nothing but that byte."""
    qemu_io(url, f"read -P {pattern} {offset} {length}", read_only=read_only)
