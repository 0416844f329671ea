"""Playhead under test: an appliance of its own, set up through the CLI as a person would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.paths import REPOSITORY, MissingError
from bench.processes import cpu_seconds, start, wait_until
from bench.server import LUN_BYTES, Server

# The journal's allotment, all of it made ahead: as a plain file's blocks are, its blocks are allocated
# and its pages in memory before the first run.
JOURNAL_BYTES = 8 << 30
# Ready before each run at least: more than any run writes.
READY_BYTES = 3 << 30
SLIDING_BYTES = 1 << 30
READY_TIMEOUT_S = 300
SEGMENT_BYTES = 64 << 20


def _gib(size_bytes: int) -> str:
    return f"{size_bytes >> 30}GiB"


class Appliance(Server):
    """`playhead serve` on a fresh store: one group of one volume, over iSCSI and NBD."""

    name = "playhead"

    def launch(self) -> dict[str, str]:
        """Starts the service, creates the volume, and takes its URLs from the CLI's JSON."""
        store = self.directory / "store"
        any_port = "127.0.0.1:0"
        self._process = start(
            [
                *(_playhead(), "serve", "--store", str(store)),
                *("--iscsi", any_port, "--nbd", any_port, "--api", any_port),
            ],
            self.log,
        )
        wait_until(lambda: self._ready() is not None, self._process, self.log)
        self._api = (self._ready() or {})["api"]
        self._cli(
            "group",
            "create",
            "bench",
            "--limit",
            _gib(JOURNAL_BYTES),
            "--reserve",
            _gib(JOURNAL_BYTES),
        )
        volume = self._cli("volume", "create", "bench/lun", "--size", f"{LUN_BYTES >> 30}GiB")
        self._wait_for_ready(JOURNAL_BYTES - (1 << 30))
        return {"iscsi": volume["iscsi_url"], "nbd": volume["nbd_url"]}

    def slide(self) -> None:
        """Shortens the journal's allotment, so that every segment written is one that is folded."""
        short = _gib(SLIDING_BYTES)
        self._cli("group", "policy", "bench", "--limit", short, "--reserve", short)
        time.sleep(5)

    def rest(self) -> None:
        """Gives the journal room for the next run: when little of it is ready, the window's past is
        folded into the base now. What that costs a host that writes on is the `sliding` scenario's to
        show.
        """
        if self._ready_bytes() < READY_BYTES:
            self._cli("journal", "trim", "bench", "--to", "head")
            self._wait_for_ready(READY_BYTES)
        time.sleep(1)

    def dirty_again(self, region_bytes: int) -> None:  # noqa: ARG002
        """Has the segments that come next in memory, as the in-place writers find their region: on a
        machine that reclaims idle page cache, or whose host does, fresh pages would cost more than
        all else.
        """
        journal = self._cli("journal", "show", "bench")
        next_number = journal["window"]["head"]["lsn"] // SEGMENT_BYTES + 1
        log = Path(journal["directory"]) / "log"
        for number in range(next_number, next_number + READY_BYTES // SEGMENT_BYTES):
            segment = log / f"{number:016x}.seg"
            if segment.exists():
                subprocess.run(["cat", str(segment)], stdout=subprocess.DEVNULL, check=True)

    def _ready_bytes(self) -> int:
        return int(self._cli("journal", "show", "bench")["ready_bytes"])

    def _wait_for_ready(self, wanted_bytes: int) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self._ready_bytes() < wanted_bytes:
            if time.monotonic() > deadline:
                raise MissingError("playhead's journal reserve was not ready in time; see its log")
            time.sleep(1)

    def version(self) -> str:
        """What `playhead --version` says."""
        done = subprocess.run(
            [_playhead(), "--version"], capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout.strip() or "of this repository"

    def _ready(self) -> dict[str, Any] | None:
        """The line of JSON in which the service says that it serves, and where."""
        for line in self.log.read_text(errors="replace").splitlines(keepends=True):
            if line.startswith('{"event": "ready"') and line.endswith("\n"):
                found: dict[str, Any] = json.loads(line)
                return found
        return None

    def _cli(self, *words: str) -> dict[str, Any]:
        command = [_playhead(), *words, "-o", "json"]
        done = subprocess.run(
            command,
            env={**os.environ, "PLAYHEAD_API": self._api},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise MissingError(f"playhead {' '.join(words)} failed: {done.stderr.strip()}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


class Attached(Server):
    """A server that somebody else started and will end: its pid and URLs are given. For work on one
    part of the path.
    """

    name = "playhead"

    def __init__(self, directory: Path, pid: int, urls: list[str]) -> None:
        super().__init__(directory)
        self._pid = pid
        self._urls = {url.partition("://")[0]: url for url in urls}

    def launch(self) -> dict[str, str]:
        """Nothing to start; a pid that is not there is an error now rather than in the middle."""
        cpu_seconds(self._pid)
        return self._urls

    def version(self) -> str:
        """Unknown: what the process runs is its owner's affair."""
        return f"attached, {Path(f'/proc/{self._pid}/comm').read_text().strip()}"

    @property
    def pid(self) -> int:
        """The given one."""
        return self._pid


def _playhead() -> str:
    """The command: PLAYHEAD, else one beside this Python, in .venv, or on PATH."""
    named = os.environ.get("PLAYHEAD")
    if named:
        return named
    for folder in (Path(sys.executable).parent, REPOSITORY / ".venv" / "bin"):
        if (folder / "playhead").exists():
            return str(folder / "playhead")
    found = shutil.which("playhead")
    if found is None:
        raise MissingError("playhead is not built; next: uv sync, or name the command in PLAYHEAD")
    return found
