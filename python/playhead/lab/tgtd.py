"""tgtd as somebody else's array: thin LUNs over plain files, on a free port of loopback, with a control socket of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from playhead.errors import PlayheadError
from playhead.lab.arrangement import AbsentError, LunPlace

START_LIMIT_S = 30.0
COMMAND_LIMIT_S = 30.0
IQN = "iqn.2026-11.io.playhead.lab:tgtd"


class Tgtd:
    """It runs from construction to `close`; LUN 0 is its controller, so the LUNs begin with 1."""

    def __init__(self, folder: Path, names: list[str], lun_bytes: int) -> None:
        if shutil.which("tgtd") is None or shutil.which("tgtadm") is None:
            raise AbsentError("tgtd is not installed", "apt-get install tgt")
        folder.mkdir()
        port = _free_port()
        # The control number names a socket of the machine; 0 is the one of a tgtd that the machine itself may run.
        self._control = str(port % 32767 + 1)
        command = ["tgtd", "-f", "-C", self._control, "--iscsi", f"portal=127.0.0.1:{port}"]
        if shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        try:
            self._wait(port, folder / "log")
            self._adm("new", "target", "--tid", "1", "--targetname", IQN)
            for number, name in enumerate(names, 1):
                self._lun(number, folder / name, lun_bytes)
            self._adm("bind", "target", "--tid", "1", "--initiator-address", "ALL")
        except BaseException:
            self.close()
            raise
        self.places = {name: LunPlace(f"127.0.0.1:{port}", IQN, number) for number, name in enumerate(names, 1)}

    def _lun(self, number: int, path: Path, lun_bytes: int) -> None:
        with path.open("wb") as file:
            file.truncate(lun_bytes)
        unit = ("--tid", "1", "--lun", str(number))
        self._adm("new", "logicalunit", *unit, "--bstype", "rdwr", "--backing-store", str(path))
        self._adm("update", "logicalunit", *unit, "--params", "thin_provisioning=1")

    def _wait(self, port: int, log: Path) -> None:
        end = time.monotonic() + START_LIMIT_S
        while True:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            if self._process.poll() is not None or time.monotonic() > end:
                raise PlayheadError("internal", f"tgtd did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)

    def _adm(self, operation: str, mode: str, *rest: str) -> None:
        command = ["tgtadm", "-C", self._control, "--lld", "iscsi", "--op", operation, "--mode", mode, *rest]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
        if done.returncode != 0:
            raise PlayheadError("internal", f"{' '.join(command)} failed: {done.stdout}{done.stderr}")

    def close(self) -> None:
        """It takes no SIGTERM while it believes in a session, and has nothing to lose here."""
        self._process.kill()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
