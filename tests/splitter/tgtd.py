"""tgtd as another array: thin LUNs over plain files, one as a rule. It can be killed, and comes back with the same LUNs at the same portal."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

TARGET = "iqn.2026-11.example.array:disk"
LUN = 1
"""0 is tgtd's controller."""

START_LIMIT_S = 20.0
COMMAND_LIMIT_S = 30.0


class Tgtd:
    """Use it as a context manager."""

    target = TARGET
    lun = LUN

    def __init__(self, folder: Path, size_bytes: int, luns: int = 1) -> None:
        """The LUNs are numbered from `LUN` on."""
        self.files = [folder / ("array.img" if at == 0 else f"array{LUN + at}.img") for at in range(luns)]
        self.file = self.files[0]
        for path in self.files:
            with path.open("wb") as file:
                file.truncate(size_bytes)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._log = folder / "tgtd.log"
        self._control = str(self.port % 32767 + 1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def portal(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The LUN without Playhead."""
        return f"iscsi://{self.portal}/{TARGET}/{LUN}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        assert self._process is None
        command = ["setpriv", "--pdeathsig", "KILL", "--", "tgtd", "-f", "-C", self._control]
        command += ["--iscsi", f"portal={self.portal}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_LIMIT_S
        while not self._listens():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        self._adm("new", "target", "--tid", "1", "--targetname", TARGET)
        for number, path in enumerate(self.files, LUN):
            unit = ("--tid", "1", "--lun", str(number))
            self._adm("new", "logicalunit", *unit, "--bstype", "rdwr", "--backing-store", str(path))
            self._adm("update", "logicalunit", *unit, "--params", "thin_provisioning=1")
        self._adm("bind", "target", "--tid", "1", "--initiator-address", "ALL")

    def kill(self) -> None:
        """As a power cut of its controller: sessions break, what it has in flight is done or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """It answers nothing more, and its connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def require_chap(self, user: str, secret: str) -> None:
        self._adm("new", "account", "--user", user, "--password", secret)
        self._adm("bind", "account", "--tid", "1", "--user", user)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _adm(self, operation: str, mode: str, *rest: str) -> None:
        command = ["tgtadm", "-C", self._control, "--lld", "iscsi", "--op", operation, "--mode", mode, *rest]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def is_installed() -> bool:
    return shutil.which("tgtd") is not None
