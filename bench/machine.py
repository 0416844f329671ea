"""The machine a run was made on, in facts that do not name it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from bench.paths import REPOSITORY


def facts(directory: Path) -> dict[str, str]:
    """Processor, memory, kernel, system and the file system of `directory`, ready to print."""
    cpu = _field(Path("/proc/cpuinfo"), "model name", ":") or platform.machine()
    hypervisor = " (virtual)" if " hypervisor" in Path("/proc/cpuinfo").read_text() else ""
    memory_kib = int((_field(Path("/proc/meminfo"), "MemTotal", ":") or "0 kB").split()[0])
    system = (_field(Path("/etc/os-release"), "PRETTY_NAME", "=") or "Linux").strip('"')
    return {
        "processor": f"{cpu}, {len(os.sched_getaffinity(0))} cores{hypervisor}",
        "memory": f"{memory_kib / (1 << 20):.0f} GiB",
        "kernel": platform.release().split("-")[0],
        "system": system,
        "file system": _file_system(directory),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit measured, with a mark when the tree holds more than that."""
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return (head or "unknown") + (" and changes" if changed else "")


def load_average() -> float:
    """Processes that wanted to run, over the last minute."""
    return os.getloadavg()[0]


def _file_system(directory: Path) -> str:
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, type_, *_ = line.split()
        if directory.is_relative_to(mount) and len(mount) > len(best):
            best, kind = mount, type_
    return kind


def _field(path: Path, name: str, separator: str) -> str | None:
    for line in path.read_text().splitlines():
        key, found, value = line.partition(separator)
        if found and key.strip() == name:
            return value.strip()
    return None


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
