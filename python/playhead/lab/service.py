"""A throwaway appliance: `playhead serve` in the laboratory's folder, on free ports of loopback, told nothing of this machine's settings."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from playhead.cli.client import Cli
from playhead.errors import PlayheadError

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
LOOPBACK = "127.0.0.1:0"
COMPLAINTS = ("warning", "error", "critical")


class Service:
    """It runs from construction to `close`."""

    def __init__(self, folder: Path) -> None:
        """Raises PlayheadError with what the service said."""
        folder.mkdir()
        self._log = folder / "log"
        settings = folder / "playhead.toml"
        settings.write_text("")
        command = [
            sys.executable,
            "-m",
            "playhead",
            "serve",
            "--config",
            str(settings),
            "--store",
            str(folder / "store"),
        ]
        command += ["--iscsi", LOOPBACK, "--nbd", LOOPBACK, "--api", LOOPBACK, "--log-format", "json"]
        if shutil.which("setpriv"):
            # Whatever ends the laboratory leaves no service behind.
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        env = {name: value for name, value in os.environ.items() if not name.startswith("PLAYHEAD_")}
        # How full this machine's disk is is not what is measured.
        env["PLAYHEAD_SPACE_LOW_BYTES"] = "1M"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=env
            )
        ready = self._ready()
        self.iscsi, self.nbd = str(ready["iscsi"]), str(ready["nbd"])
        self.api = Cli(str(ready["api"]).removeprefix("http://"), None)

    def _ready(self) -> dict[str, Any]:
        said = self._process.stdout
        line = ""
        if said is not None and select.select([said], [], [], START_TIMEOUT_S)[0]:
            line = said.readline()
        if not line:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
            raise PlayheadError("internal", f"the laboratory's service did not start: {self._log.read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def complaints(self) -> list[str]:
        """Log lines at WARN and above, and whatever is no log line."""
        found = []
        for line in self._log.read_text().splitlines():
            try:
                complains = json.loads(line)["level"] in COMPLAINTS
            except (ValueError, KeyError, TypeError):
                complains = True
            if complains:
                found.append(line)
        return found

    def close(self) -> None:
        """Ends it cleanly, or at all."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
