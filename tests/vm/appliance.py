"""What the VM tests need of the storage under test: disks on both protocols, bookmarks, and images of them.

Two appliances exist: Playhead itself (`playhead.py`), and other people's servers (`peers.py`), which prove that a
failing test is not the bench's own fault.
"""

from __future__ import annotations

import socket
import subprocess
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

END_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Disk:
    """One exported disk, by both of its addresses. Every port is on the host's 127.0.0.1."""

    iscsi_port: int
    iqn: str
    lun: int
    nbd_port: int
    nbd_export: str
    size_bytes: int
    read_only: bool = False


class Appliance(Protocol):
    """Storage that the guest can use and whose past can be opened."""

    name: str

    def create_disk(self, name: str, size_bytes: int) -> Disk:
        """A new, empty disk, exported."""
        ...

    def bookmark(self, disk: Disk, name: str) -> None:
        """Names this moment of `disk`, one instant even while a host writes."""
        ...

    def image(self, disk: Disk, bookmark: str, writable: bool) -> AbstractContextManager[Disk]:
        """Exports `disk` as it was at `bookmark` for as long as the context is open."""
        ...

    def complaints(self) -> list[str]:
        """Warnings and errors the servers have logged so far."""
        ...


class ApplianceError(Exception):
    """A server of the appliance did not start or refused; the message has what it said."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listening(port: int) -> bool:
    """Whether somebody accepts connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start_server(command: list[str], log: Path, append: bool = False) -> subprocess.Popen[bytes]:
    """Starts a server whose output goes to `log` and that is killed if this process dies."""
    with log.open("ab" if append else "wb") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def end_server(server: subprocess.Popen[bytes]) -> None:
    """Asks a server to end, and kills it if it does not."""
    server.terminate()
    try:
        server.wait(timeout=END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(timeout=END_TIMEOUT_S)
