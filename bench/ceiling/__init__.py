"""The loopback ceiling: builds ceiling.c, which says what it is."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from bench.paths import cache_dir, program

SOURCE = Path(__file__).with_name("ceiling.c")
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-pthread")


def binary() -> Path:
    """The built ceiling; its name carries the source's digest: an edit builds anew."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    built = cache_dir() / f"ceiling-{digest}"
    if not built.exists():
        fresh = built.with_suffix(f".{os.getpid()}")
        compiler = program("cc", "build-essential")
        subprocess.run([compiler, *FLAGS, "-o", str(fresh), str(SOURCE)], check=True)
        fresh.replace(built)
    return built
