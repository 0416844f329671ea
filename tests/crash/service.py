"""The real daemon in a store of its own, to be killed and started again, and its CLI."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

START_TIMEOUT_S = 60.0
CLI_TIMEOUT_S = 60.0
API_LINE = re.compile(r"http://127\.0\.0\.1:\d+")


class ServiceError(Exception):
    """The daemon did not start, or a command was refused; the message has what was said."""


class Service:
    """`playhead serve` on a store. Every port is of 127.0.0.1 and picked by the daemon."""

    def __init__(self, store: Path, log: Path) -> None:
        self._store = store
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self.api = ""

    def start(self) -> None:
        """Starts the daemon and waits until it says where its API is."""
        command = [sys.executable, "-m", "playhead", "serve", "--store", str(self._store)]
        command += ["--iscsi", "127.0.0.1:0", "--nbd", "127.0.0.1:0", "--api", "127.0.0.1:0"]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._process = process
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._collect, args=(process, lines), daemon=True).start()
        said = ""
        try:
            while (line := lines.get(timeout=START_TIMEOUT_S)) is not None:
                said += line
                if found := API_LINE.search(line):
                    self.api = found.group()
                    return
        except queue.Empty:
            pass
        self.kill()
        raise ServiceError(f"the daemon did not start; it said:\n{said}")

    def _collect(self, process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        with self._log.open("a") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                lines.put(line)
        lines.put(None)

    def kill(self) -> None:
        """SIGKILL: no warning, no clean-up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """SIGTERM: the clean end. Returns the exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout=START_TIMEOUT_S)
        self._process = None
        return code

    def rest(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One call of the REST API; `path` is below /api/v1."""
        request = urllib.request.Request(
            f"{self.api}/api/v1{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=CLI_TIMEOUT_S) as answer:
                said = answer.read()
        except urllib.error.HTTPError as error:
            raise ServiceError(f"{method} {path}: {error.code} {error.read().decode()}") from error
        return json.loads(said) if said else None

    def cli(self, *arguments: str) -> Any:
        """Runs `playhead ARGUMENTS -o json` and returns what it printed, parsed."""
        done = subprocess.run(
            [sys.executable, "-m", "playhead", *arguments, "-o", "json"],
            capture_output=True,
            text=True,
            timeout=CLI_TIMEOUT_S,
            env={**os.environ, "PLAYHEAD_API": self.api},
            check=False,
        )
        if done.returncode != 0:
            raise ServiceError(f"playhead {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def head_lsn(self, group: str) -> int:
        """The newest LSN."""
        return int(self.cli("group", "head", group)["lsn"])


def nbd_address(url: str) -> tuple[str, int, str]:
    """Host, port and export name of an nbd:// URL."""
    parts = urlsplit(url)
    if parts.scheme != "nbd" or parts.hostname is None or parts.port is None:
        raise ValueError(f"{url!r} is no NBD address")
    return parts.hostname, parts.port, unquote(parts.path[1:])
