"""Playhead as the appliance: `playhead serve` on a store of its own, driven by the CLI as an operator would."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from playhead.cli.client import Cli

from .appliance import ApplianceError, Disk, end_server, free_port, start_server

START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 60.0
COPY_TIMEOUT_S = 120.0

VOLUME = "disk"
"""Each disk is the only volume of a group of its own, so that its bookmarks and images are its own too."""


class PlayheadAppliance:
    """`playhead serve` with its store in `folder`, ended with the context."""

    name = "playhead"

    def __init__(self, folder: Path) -> None:
        self._store = folder / "store"
        self._log = folder / "serve.log"
        ports = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        self._iscsi, self._nbd, self._api = ports
        self._rest = Cli(self._api, None)
        self._image_numbers = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PlayheadAppliance:
        self._start()
        return self

    def _start(self) -> None:
        addresses = ["--iscsi", self._iscsi, "--nbd", self._nbd, "--api", self._api]
        # How full this machine's disk is should not decide whether a test finds complaints.
        quiet = ["env", "PLAYHEAD_SPACE_LOW_BYTES=1M"]
        serve = [*quiet, *_playhead(), "serve", "--store", str(self._store), "--log-format", "json", *addresses]
        self._server = start_server(serve, self._log, append=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._cli("status").returncode != 0:
            if self._server.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise ApplianceError(f"playhead serve did not start:\n{self._log.read_text()}")
            time.sleep(0.1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def create_disk(self, name: str, size_bytes: int) -> Disk:
        """A new group with one sparse volume."""
        self._do("group", "create", name)
        return disk_of(self._do("volume", "create", f"{name}/{VOLUME}", "--size", str(size_bytes)))

    def create_neighbour(self, disk: Disk, name: str, size_bytes: int) -> Disk:
        """One more volume in the group of `disk`: the next LUN of the same target."""
        return disk_of(self._do("volume", "create", f"{_group(disk)}/{name}", "--size", str(size_bytes)))

    def head(self, disk: Disk) -> int:
        """Where the journal of the disk's group ends, in bytes: what is added from here on is its growth."""
        return int(self._rest.get("groups", _group(disk), "head")["lsn"])

    def records(self, disk: Disk, since: int) -> list[dict[str, Any]]:
        """The records that the journal of the disk's group has from `since` on, without payload."""
        found: list[dict[str, Any]] = self._rest.get("groups", _group(disk), "journal", "records", from_lsn=since)[
            "records"
        ]
        return found

    def mask(self, disk: Disk, host: str, initiator: str) -> None:
        """Lets only this initiator see the disk, as the host of that name."""
        group, _, volume = disk.nbd_export.partition("/")
        self._do("host", "create", host, "--initiator", initiator)
        self._do("host", "map", host, f"{group}/{volume}")

    def restart(self, crash: bool = False) -> None:
        """Ends the service, cleanly or by SIGKILL, and starts it again on the same addresses."""
        if self._server is not None:
            if crash:
                self._server.kill()
            end_server(self._server)
        self._start()

    def bookmark(self, disk: Disk, name: str) -> None:
        """Bookmarks the disk's group."""
        self._do("bookmark", "create", f"{_group(disk)}/{name}")

    def add_copy(self, disk: Disk, name: str) -> None:
        """Gives the disk's group a copy on another disk."""
        place = self._store.with_name(f"copy-{_group(disk)}")
        self._do("copy", "add", f"{_group(disk)}/{name}", "--directory", str(place))

    def level(self, disk: Disk, name: str) -> None:
        """Waits until the copy has all that the disk has now."""
        head, deadline = self.head(disk), time.monotonic() + COPY_TIMEOUT_S
        while (found := self.copy(disk, name))["state"] != "synchronised" or found["durable_lsn"] < head:
            if time.monotonic() > deadline:
                raise ApplianceError(f"the copy does not get to LSN {head}: {found}")
            time.sleep(0.1)

    def copy(self, disk: Disk, name: str) -> dict[str, Any]:
        """How a copy stands."""
        found: dict[str, Any] = self._rest.get("groups", _group(disk), "copies", name)
        return found

    def remove_copy(self, disk: Disk, name: str) -> None:
        """Ends a copy, with its data."""
        self._do("copy", "remove", f"{_group(disk)}/{name}", "--delete-data")

    def verify_copy(self, disk: Disk, name: str) -> None:
        """Compares a copy with the disk's group; fails if there is a difference."""
        self._do("copy", "verify", f"{_group(disk)}/{name}")

    @contextmanager
    def image(self, disk: Disk, bookmark: str, writable: bool, copy: str | None = None) -> Iterator[Disk]:
        """Opens an image of the disk's group at the bookmark, as production or a copy has it."""
        path = f"{_group(disk)}/{bookmark}-{next(self._image_numbers)}"
        options = (["--writable"] if writable else []) + (["--copy", copy] if copy else [])
        opened = self._do("image", "open", path, "--at", bookmark, *options)
        yield disk_of(opened["volumes"][0])
        self._do("image", "close", path)

    def complaints(self) -> list[str]:
        """The log's lines of level warning or worse, and what is no log line at all: a traceback, a panic."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line for line in lines if not is_calm(line)]

    def _do(self, *arguments: str) -> Any:
        """A CLI command's JSON."""
        return json.loads(self._said(*arguments) or "null")

    def _said(self, *arguments: str) -> str:
        """What a CLI command printed."""
        done = self._cli(*arguments)
        if done.returncode != 0:
            raise ApplianceError(f"playhead {' '.join(arguments)} gave {done.returncode}: {done.stderr}")
        return done.stdout

    def _cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_playhead(), *arguments, "-o", "json"],
            env={**os.environ, "PLAYHEAD_API": self._api},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            text=True,
            check=False,
        )

    def _end(self) -> None:
        if self._server is not None:
            end_server(self._server)
            self._server = None
        shutil.rmtree(self._store, ignore_errors=True)


def is_calm(line: str) -> bool:
    try:
        # The line that says "ready" is for scripts and has no level.
        return json.loads(line).get("level", "info") in ("debug", "info")
    except (ValueError, AttributeError):
        return False


def _playhead() -> list[str]:
    return [sys.executable, "-m", "playhead"]


def _group(disk: Disk) -> str:
    return disk.nbd_export.partition("/")[0]


def disk_of(shown: dict[str, Any]) -> Disk:
    """A disk as the CLI shows it. Its addresses are taken from the URLs, as scripts do."""
    iscsi = urlsplit(shown["iscsi_url"])
    # None of a LUN of another array.
    nbd = urlsplit(shown["nbd_url"] or "nbd://127.0.0.1:0/")
    _, iqn, lun = iscsi.path.split("/")
    if iscsi.port is None or nbd.port is None:
        raise ApplianceError(f"no port in {shown['iscsi_url']} or {shown['nbd_url']}")
    return Disk(
        iscsi_port=iscsi.port,
        iqn=unquote(iqn),
        lun=int(lun),
        nbd_port=nbd.port,
        nbd_export=unquote(nbd.path.removeprefix("/")),
        size_bytes=int(shown["size_bytes"]),
        read_only=bool(shown["read_only"]),
    )
