"""tgtd as the target of the suite: a thin LUN over a plain file, as its manual has it, and the same places as far as it has them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .places import SECRET, SIZE_BYTES, USER, Place

START_LIMIT_S = 20.0
COMMAND_LIMIT_S = 30.0


class TgtdError(Exception):
    """tgtd did not start, or refused a command; the message has what it said."""


class TgtdTarget:
    """One tgtd with targets of its own. Use it as a context manager."""

    name = "tgtd"

    def __init__(self) -> None:
        if shutil.which("tgtd") is None or shutil.which("tgtadm") is None:
            raise TgtdError("tgtd not found: apt-get install tgt")
        self._folder = Path(tempfile.mkdtemp(prefix="conformance-tgtd-"))
        self._ports = [_free_port(), _free_port()]
        # The control number names a socket of the machine; 0 is the one of a tgtd that the machine itself may run.
        self._control = str(self._ports[0] % 32767 + 1)
        self._arguments: dict[Place, list[str]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def arguments(self, place: Place) -> list[str]:
        """The end of the suite's command line."""
        return self._arguments.get(place, self._arguments[Place.PLAIN])

    def close(self) -> None:
        """Ends tgtd and removes its files."""
        if self._process is not None:
            # It takes no SIGTERM while it believes in a session, and has nothing to lose here.
            self._process.kill()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        portals = ",".join(f"portal=127.0.0.1:{port}" for port in self._ports)
        command = ["setpriv", "--pdeathsig", "KILL", "--", "tgtd", "-f", "-C", self._control, "--iscsi", portals]
        with (self._folder / "tgtd.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not all(_listening(port) for port in self._ports):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TgtdError(f"tgtd did not start: {(self._folder / 'tgtd.log').read_text()}")
            time.sleep(0.05)
        plain = self._target(1, "plain")
        self._arguments[Place.PLAIN] = plain[:1]
        self._arguments[Place.TWO_PORTALS] = plain
        self._arguments[Place.READ_ONLY] = self._target(2, "read-only", "readonly=1")[:1]
        self._arguments[Place.NATIVE] = self._target(3, "native", "lbppbe=0")[:1]
        self._arguments[Place.NO_UNMAP] = self._target(5, "not-thin", "thin_provisioning=0")[:1]
        chap = self._target(4, "chap")[0]
        self._adm("new", "account", "--user", USER, "--password", SECRET)
        self._adm("bind", "account", "--tid", "4", "--user", USER)
        self._arguments[Place.CHAP] = [chap.replace("iscsi://", f"iscsi://{USER}%{SECRET}@")]

    def _target(self, number: int, name: str, *parameters: str) -> list[str]:
        """A new target with a thin LUN 1; LUN 0 is tgtd's controller. Returns its address by each portal."""
        file = self._folder / name
        with file.open("wb") as lun:
            lun.truncate(SIZE_BYTES)
        iqn = f"iqn.2026-11.example.conformance:{name}"
        unit = ("--tid", str(number), "--lun", "1")
        self._adm("new", "target", "--tid", str(number), "--targetname", iqn)
        self._adm("new", "logicalunit", *unit, "--bstype", "rdwr", "--backing-store", str(file))
        self._adm("update", "logicalunit", *unit, "--params", ",".join(["thin_provisioning=1", *parameters]))
        self._adm("bind", "target", "--tid", str(number), "--initiator-address", "ALL")
        return [f"iscsi://127.0.0.1:{port}/{iqn}/1" for port in self._ports]

    def _adm(self, operation: str, mode: str, *rest: str) -> None:
        command = ["tgtadm", "-C", self._control, "--lld", "iscsi", "--op", operation, "--mode", mode, *rest]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
        if done.returncode != 0:
            raise TgtdError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")


def version() -> str:
    """tgtd's version."""
    asked = subprocess.run(["tgtd", "--version"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "of unknown version"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
