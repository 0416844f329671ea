"""The demo does what it says: run as a person would, and judged by its outcome."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from demo.programs import has_fuse, missing

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 300.0

WITH_FUSE = pytest.param(
    [], id="fuse", marks=pytest.mark.skipif(not has_fuse() or bool(missing(True)), reason="no FUSE here")
)
WITHOUT_FUSE = pytest.param(
    ["--no-fuse"], id="no-fuse", marks=pytest.mark.skipif(bool(missing(False)), reason="no tools here")
)


def _start(*arguments: str | Path, scratch: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "demo.run", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
    )


def _processes_of(folder: Path) -> list[str]:
    """The command lines that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        if str(folder) in line:
            found.append(line)
    return found


@pytest.mark.parametrize("options", [WITH_FUSE, WITHOUT_FUSE])
def test_everything_that_was_lost_comes_back(options: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with _start(*options, "--report", report, scratch=scratch) as demo:
        told, _ = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 0, told
    outcome = json.loads(report.read_text())
    assert len(outcome["checks"]) == told.count("\N{CHECK MARK}") >= 10
    assert set(outcome["timings_ms"]) == {
        "image_open_writable",
        "image_open_by_time",
        "image_open_by_lsn",
        "rewind",
        "undo",
    }
    assert list(scratch.iterdir()) == []
    assert _processes_of(scratch) == []


@pytest.mark.parametrize("options", [WITH_FUSE])
def test_stopped_in_the_middle_it_leaves_nothing_behind(options: list[str], tmp_path: Path) -> None:
    with _start(*options, scratch=tmp_path) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("2. "):
                break
        time.sleep(1.0)  # into the middle of filling a file system
        demo.send_signal(signal.SIGTERM)
        told = demo.stdout.read()
        demo.wait(TIMEOUT_S)
    assert demo.returncode == 130, told
    assert list(tmp_path.iterdir()) == []
    assert _processes_of(tmp_path) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
