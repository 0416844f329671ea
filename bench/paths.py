"""Where things lie: the repository, the cache of built tools, programs on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
REPORT = REPOSITORY / "docs" / "benchmarks.md"


class MissingError(Exception):
    """Something the benchmarks stand on is not installed or not built; the text says what to do."""


def cache_dir() -> Path:
    """The folder of built tools: PLAYHEAD_CACHE, or .work/cache of the repository."""
    path = Path(os.environ.get("PLAYHEAD_CACHE") or REPOSITORY / ".work" / "cache")
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def program(name: str, package: str) -> str:
    """The path of program `name`; daemons of /usr/sbin are found without it being on PATH."""
    search = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin" + os.pathsep + "/sbin"
    found = shutil.which(name, path=search)
    if found is None:
        raise MissingError(f"{name} is not installed; next: apt-get install {package}")
    return found
