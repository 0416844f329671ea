"""Keeps every core awake while latency is measured.

Waking a halted core costs more than a request at queue depth 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Runs in a process of its own: the lowest priority there is, one core each, gone with its parent
# and after ten minutes at the latest.
_SPIN = """
import os, sys, time
core, parent = int(sys.argv[1]), int(sys.argv[2])
os.sched_setaffinity(0, {core})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.nice(19)
end = time.monotonic() + 600
while os.getppid() == parent and time.monotonic() < end:
    for _ in range(200_000):
        pass
"""


@contextmanager
def cores_awake() -> Iterator[list[int]]:
    """Spins a SCHED_IDLE process on each core during the block; yields their pids."""
    spinners = [
        subprocess.Popen([sys.executable, "-I", "-c", _SPIN, str(core), str(os.getpid())])
        for core in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield [spinner.pid for spinner in spinners]
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
