"""Processes: started with a death signal, ended by pid, their CPU time read from /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.paths import MissingError, program

START_SECONDS = 20.0
STOP_SECONDS = 10.0
# A machine is quiet when nothing uses more than this much of a core for this long.
QUIET_CORES = 0.1
QUIET_SECONDS = 0.3
TICK_SECONDS = 1.0 / os.sysconf("SC_CLK_TCK")


def start(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a server whose output goes to `log`; it dies with this process, however this process
    dies.
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            [program("setpriv", "util-linux"), "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL when that is not obeyed; to this one pid."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Polls `ready`; raises `MissingError` with the end of the log when the server ends or takes
    too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is not None or not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            stop(process)
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise MissingError(f"{process.args!r} did not start:\n{tail}")
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago, for servers that cannot pick one
    themselves.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether 127.0.0.1:port takes connections."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all its threads, and of all its descendants, living or waited for.

    utime + stime + cutime + cstime of /proc/<pid>/stat, fields 14 to 17 of proc(5); resolution one
    clock tick (10 ms).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError as error:
        raise MissingError(f"process {pid} is gone") from error
    fields = stat.rpartition(")")[2].split()
    total = sum(int(field) for field in fields[11:15]) * TICK_SECONDS
    for child in _children(pid):
        try:
            total += cpu_seconds(child)
        except (
            MissingError
        ):  # it ended between the listing and the look; its parent's cutime has it
            continue
    return total


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in listing.read_text().split()]
        except FileNotFoundError:  # the thread ended
            continue
    return found


def machine_busy_seconds() -> float:
    """CPU time of everything on this machine, stolen time included and idle time not; first line of
    /proc/stat.

    Nice time counts: a build at low priority disturbs too. Guest time is part of user time.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (
        int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) * TICK_SECONDS


def wait_for_quiet(patience_seconds: float, ignored: Sequence[int]) -> None:
    """Returns when this machine is idle but for the processes `ignored`, or when patience is over.

    Noise is waited out, never left out: how disturbed a run was is part of its sample.
    """
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        began, busy = time.monotonic(), machine_busy_seconds() - sum(map(cpu_seconds, ignored))
        time.sleep(QUIET_SECONDS)
        busy = machine_busy_seconds() - sum(map(cpu_seconds, ignored)) - busy
        if busy / (time.monotonic() - began) <= QUIET_CORES:
            return
