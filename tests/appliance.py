"""The real service as tests use it: `playhead serve` on a store, asked with the CLI as an operator would.

Ports are picked at the first start and kept over restarts, so that clients of before can come back.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.warm import Process, interpreter

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
CLI_TIMEOUT_S = 120.0

COMPLAINT_LEVELS = ("warning", "error", "critical")


class ServeError(Exception):
    """`playhead serve` ended instead of becoming ready."""

    def __init__(self, exit_code: int, stderr: str) -> None:
        super().__init__(f"serve ended with {exit_code}:\n{stderr}")
        self.exit_code = exit_code
        self.stderr = stderr


class CliError(Exception):
    """A command was refused."""

    def __init__(self, arguments: tuple[str, ...], exit_code: int, stderr: str) -> None:
        super().__init__(f"playhead {' '.join(arguments)} ended with {exit_code}: {stderr}")
        self.exit_code = exit_code
        self.stderr = stderr
        try:
            self.problem: dict[str, Any] = json.loads(stderr)
        except ValueError:
            self.problem = {}

    @property
    def code(self) -> str:
        """The problem's code; empty if it was none."""
        return str(self.problem.get("code", ""))


def playhead(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the CLI to its end."""
    return interpreter().run(arguments, {**os.environ, **(env or {})}, CLI_TIMEOUT_S)


class Appliance:
    """One store, and the service on it while it runs. The log of all its runs is one file of JSON lines."""

    def __init__(self, store: Path, *options: str, log: Path | None = None) -> None:
        self.store = store
        self.log = log or store.with_name(f"{store.name}.log")
        self.options = options
        self.addresses = {"iscsi": "127.0.0.1:0", "nbd": "127.0.0.1:0", "api": "127.0.0.1:0"}
        self.ready: dict[str, Any] = {}
        self.process: Process | None = None
        self._expected: list[re.Pattern[str]] = []

    # The process.

    def start(self) -> Self:
        """Starts the service and waits until it is ready."""
        assert self.process is None, "it runs already"
        command = ["serve", "--store", str(self.store), "--log-format", "json"]
        for name, address in self.addresses.items():
            if f"--{name}" not in self.options:
                command += [f"--{name}", address]
        command += self.options
        env = {k: v for k, v in os.environ.items() if not k.startswith("PLAYHEAD_")}
        if "--config" not in self.options:
            # How full this machine's disk is should not decide whether a test finds complaints.
            env["PLAYHEAD_SPACE_LOW_BYTES"] = "1M"
        said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            process = interpreter().start(tuple(command), env, log.fileno())
        self.process = process
        readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
        line = process.stdout.readline() if readable else ""
        if not line:
            if not readable:
                process.kill()
            exit_code = process.wait(STOP_TIMEOUT_S)
            self.process = None
            raise ServeError(exit_code, self.log.read_bytes()[said_before:].decode())
        self.ready = json.loads(line)
        assert self.ready["event"] == "ready"
        for name in self.addresses:
            if self.ready[name]:
                self.addresses[name] = self.ready[name].removeprefix("http://")
        return self

    @property
    def pid(self) -> int:
        """Of the running service."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL: what a crash of the process is."""
        assert self.process is not None
        self.process.kill()
        self._reap()

    def stop(self) -> None:
        """SIGTERM, and the clean end it asks for."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        exit_code = self._reap()
        assert exit_code == 0, f"serve ended with {exit_code}:\n{self.said()}"

    def _reap(self) -> int:
        process, self.process = self.process, None
        assert process is not None
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)
            raise
        finally:
            process.stdout.close()

    def restart(self) -> None:
        """A clean stop, if it runs, and a start on the same addresses."""
        if self.process is not None:
            self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start() if self.process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is None:
            return
        if kind is not None:
            self.kill()
        else:
            self.stop()

    # The CLI.

    @property
    def env(self) -> dict[str, str]:
        """What the CLI needs to find this service."""
        return {"PLAYHEAD_API": self.addresses["api"]}

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """A command as a person types it."""
        return playhead(*arguments, env={**self.env, **(env or {})})

    def cli(self, *arguments: str) -> Any:
        """A command with `-o json`; what it printed. Raises CliError if refused."""
        done = self.run(*arguments, "-o", "json")
        if done.returncode != 0:
            raise CliError(arguments, done.returncode, done.stderr)
        return json.loads(done.stdout)

    def refusal(self, *arguments: str) -> CliError:
        """A command that must be refused; how it was."""
        try:
            answer = self.cli(*arguments)
        except CliError as error:
            return error
        raise AssertionError(f"playhead {' '.join(arguments)} was not refused: {answer}")

    def disk(self, path: str) -> dict[str, Any]:
        """A volume `GROUP/VOLUME`, or an image's `GROUP/IMAGE/VOLUME`."""
        parts = path.split("/")
        found: dict[str, Any]
        if len(parts) == 2:
            found = self.cli("volume", "show", path)
        else:
            image = self.cli("image", "show", "/".join(parts[:2]))
            found = next(disk for disk in image["volumes"] if disk["name"] == parts[2])
        return found

    def iscsi_url(self, path: str) -> str:
        return str(self.disk(path)["iscsi_url"])

    def nbd_url(self, path: str) -> str:
        return str(self.disk(path)["nbd_url"])

    # The log.

    def said(self) -> str:
        """The whole log."""
        return self.log.read_text() if self.log.exists() else ""

    def expect(self, pattern: str) -> None:
        """Warnings and errors that match are part of the test."""
        self._expected.append(re.compile(pattern))

    def complaints(self) -> list[str]:
        """Warnings and errors nobody expected, and anything that is not a log line (a panic, a traceback)."""
        found = []
        for line in self.said().splitlines():
            try:
                complains = json.loads(line)["level"] in COMPLAINT_LEVELS
            except (ValueError, KeyError, TypeError):
                complains = True
            if complains and not any(pattern.search(line) for pattern in self._expected):
                found.append(line)
        return found


def wait_until(condition: Any, what: str, timeout_s: float = 60.0) -> None:
    """Polls until `condition()` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)
