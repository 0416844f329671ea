"""The appliance: `playhead serve` on a store of its own, asked over its REST API as the CLI asks it."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.programs import DemoError, running

ANSWER_TIMEOUT_S = 60.0
JOB_POLL_S = 0.05


class Appliance:
    """A running service."""

    def __init__(self, addresses: dict[str, str], process_id: int) -> None:
        self.iscsi = addresses["iscsi"]
        self.process_id = process_id
        self._api = f"{addresses['api']}/api/v1"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request; `path` is below /api/v1. A refusal is an error with the service's own words."""
        request = urllib.request.Request(
            f"{self._api}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
                said = answer.read()
        except urllib.error.HTTPError as refusal:
            said = refusal.read()
            raise DemoError(
                f"{method} {path}: {refusal.code}\n{said.decode(errors='replace')}"
            ) from refusal
        return json.loads(said) if said else None

    def timed(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[Any, float]:
        """As `ask`, with the milliseconds from request to answer."""
        begun = time.perf_counter()
        answer = self.ask(method, path, body)
        return answer, (time.perf_counter() - begun) * 1000

    def done(self, job: dict[str, Any]) -> dict[str, Any]:
        """Waits for long work to end and returns its result."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while job["state"] == "running" and time.monotonic() < deadline:
            time.sleep(JOB_POLL_S)
            job = self.ask("GET", f"jobs/{job['id']}")
        if job["state"] != "done":
            raise DemoError(f"{job['kind']} of {job['object']} is {job['state']}: {job['problem']}")
        result: dict[str, Any] = job["result"]
        return result


@contextmanager
def serving(store: Path, work: Path) -> Iterator[Appliance]:
    """An appliance on free ports of this machine's loopback, for the length of the context; its log is serve.log."""
    log = work / "serve.log"
    anywhere = "127.0.0.1:0"
    # However full this machine's disk is, the demonstration needs little of it.
    command: list[str | Path] = ["env", "PLAYHEAD_SPACE_LOW_BYTES=1M"]
    command += [sys.executable, "-m", "playhead", "serve", "--store", store]
    command += ["--log-format", "json"]
    command += ["--iscsi", anywhere, "--nbd", anywhere, "--api", anywhere]
    with running(command, log, lambda: _ready(log) is not None) as process:
        addresses = _ready(log)
        if addresses is None:
            raise DemoError("the service said where it serves, and then did not")
        yield Appliance(addresses, process.pid)
    if process.returncode != 0:
        raise DemoError(f"the service ended with code {process.returncode}; see {log}")


def complaints(work: Path) -> list[str]:
    """The lines of the service's log that are warnings or worse, or no log lines at all."""
    found = []
    for line in (work / "serve.log").read_text(errors="replace").splitlines():
        said = _json(line)
        if said.get("event") != "ready" and said.get("level") not in ("debug", "info"):
            found.append(line)
    return found


def _ready(log: Path) -> dict[str, str] | None:
    """The line with which the service says that it serves, and where."""
    for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
        said = _json(line)
        if said.get("event") == "ready" and said.get("api"):
            return said
    return None


def _json(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
