"""Other people's servers as an appliance: tgtd for iSCSI and nbdkit for NBD, over the same plain files.

A bookmark is a copy of the file, made while the servers are stopped: slow and dear, but one instant.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from .appliance import ApplianceError, Disk, free_port, listening, start_server

START_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 30
LUN = 1
"""tgtd keeps LUN 0 for its controller."""


class PeerAppliance:
    """tgtd and nbdkit, started in `folder` and ended with the context."""

    name = "peers"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writable = folder / "writable"
        self._read_only = folder / "read-only"
        self._iscsi_port = free_port()
        self._nbd_port = free_port()
        self._nbd_read_only_port = free_port()
        # tgtd's control number names its socket, and 0 is the one of a tgtd that the machine itself may run.
        self._control = str(self._iscsi_port % 32767 + 1)
        self._target_ids = itertools.count(1)
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> PeerAppliance:
        for folder in (self._writable, self._read_only):
            folder.mkdir(parents=True)
        portal = f"portal=127.0.0.1:{self._iscsi_port}"
        nbdkit = ["nbdkit", "--foreground", "--ipaddr=127.0.0.1"]
        read_only = [*nbdkit, "--readonly", f"--port={self._nbd_read_only_port}"]
        commands = {
            "tgtd": ["tgtd", "-f", "-C", self._control, "--iscsi", portal],
            "nbdkit": [*nbdkit, f"--port={self._nbd_port}", "file", f"dir={self._writable}"],
            "nbdkit-r": [*read_only, "file", f"dir={self._read_only}"],
        }
        try:
            for name, command in commands.items():
                self._servers.append(start_server(command, self._folder / f"{name}.log"))
            self._wait_until_they_listen()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def create_disk(self, name: str, size_bytes: int) -> Disk:
        """A sparse file, exported by both servers."""
        with (self._writable / name).open("xb") as file:
            file.truncate(size_bytes)
        return self._export(name, size_bytes, read_only=False)

    def bookmark(self, disk: Disk, name: str) -> None:
        """Copies the file. Nothing is acknowledged meanwhile, so what hosts know of is before or after the copy."""
        kept = self._folder / f"{disk.nbd_export}@{name}"
        for server in self._servers:
            server.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, server.pid, os.WSTOPPED)
        _run(["cp", "--sparse=always", str(self._writable / disk.nbd_export), str(kept)])
        for server in self._servers:
            server.send_signal(signal.SIGCONT)

    @contextmanager
    def image(self, disk: Disk, bookmark: str, writable: bool) -> Iterator[Disk]:
        """Exports the copy, or a copy of it if it is to be written."""
        kept = self._folder / f"{disk.nbd_export}@{bookmark}"
        target_id = next(self._target_ids)
        name = f"{kept.name.replace('@', '-')}-{target_id}"
        folder = self._writable if writable else self._read_only
        _run(["cp", "--sparse=always", str(kept), str(folder / name)])
        exported = self._export(name, disk.size_bytes, read_only=not writable)
        yield exported
        # The guest's session is gone, but tgtd may not have noticed yet.
        self._tgtadm("delete", "target", "--force", "--tid", exported.iqn.rpartition(":t")[2])
        (folder / name).unlink()

    def complaints(self) -> list[str]:
        """Nothing: what a peer logs is its own affair."""
        return []

    def _export(self, name: str, size_bytes: int, read_only: bool) -> Disk:
        folder = self._read_only if read_only else self._writable
        target_id = str(next(self._target_ids))
        iqn = f"iqn.2025-01.example.peers:{name}:t{target_id}"
        unit = ["--tid", target_id, "--lun", str(LUN)]
        self._tgtadm("new", "target", "--tid", target_id, "--targetname", iqn)
        self._tgtadm("new", "logicalunit", *unit, "--backing-store", str(folder / name))
        parameters = "thin_provisioning=1" + (",readonly=1" if read_only else "")
        self._tgtadm("update", "logicalunit", *unit, "--params", parameters)
        self._tgtadm("bind", "target", "--tid", target_id, "--initiator-address", "ALL")
        return Disk(
            iscsi_port=self._iscsi_port,
            iqn=iqn,
            lun=LUN,
            nbd_port=self._nbd_read_only_port if read_only else self._nbd_port,
            nbd_export=name,
            size_bytes=size_bytes,
            read_only=read_only,
        )

    def _tgtadm(self, operation: str, mode: str, *rest: str) -> None:
        tgtadm = ["tgtadm", "-C", self._control, "--lld", "iscsi"]
        _run([*tgtadm, "--op", operation, "--mode", mode, *rest])

    def _wait_until_they_listen(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        ports = {self._iscsi_port, self._nbd_port, self._nbd_read_only_port}
        while ports:
            ports = {port for port in ports if not listening(port)}
            ended = [server for server in self._servers if server.poll() is not None]
            if ended or (ports and time.monotonic() > deadline):
                logs = [log.read_text() for log in sorted(self._folder.glob("*.log"))]
                raise ApplianceError(f"tgtd or nbdkit did not start: {logs}")
            time.sleep(0.05)

    def _end(self) -> None:
        for server in self._servers:
            # tgtd takes no SIGTERM while it believes in a session, and has nothing to lose here.
            server.kill()
            server.wait()
        self._servers.clear()
        shutil.rmtree(self._writable, ignore_errors=True)
        shutil.rmtree(self._read_only, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_TIMEOUT_S,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ApplianceError(f"{' '.join(command)} failed: {done.stdout}")
