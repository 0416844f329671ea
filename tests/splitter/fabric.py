"""What tests of the fabric-based splitter share: a volume `db/data` that follows an array's LUN, hosts that use it, and whether the two are equal."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from tests.appliance import Appliance, CliError
from tests.control.initiator import Initiator, RefusedError
from tests.splitter.suite import Array

SYNCHRONISED_LIMIT_S = 60.0
HOST = "iqn.2026-11.example:host"
LOAD_LIMIT_S = 60.0


def protect(appliance: Appliance, array: Array, *options: str, names: str = "host") -> dict[str, Any]:
    """A volume `db/data` that follows the array's LUN, once it is synchronised."""
    appliance.cli("array", "add", "san", "--portal", array.portal, "--names", names)
    appliance.cli("group", "create", "db")
    where = ("--array", "san", "--target", array.target, "--lun", str(array.lun))
    appliance.cli("volume", "create", "db/data", *where, *options)
    return synchronised(appliance)


def synchronised(appliance: Appliance, path: str = "db/data") -> dict[str, Any]:
    deadline = time.monotonic() + SYNCHRONISED_LIMIT_S
    while True:
        volume: dict[str, Any] = appliance.cli("volume", "show", path)
        if volume["splitter"]["state"] == "synchronised":
            return volume
        assert time.monotonic() < deadline, volume["splitter"]
        time.sleep(0.1)


def check_equal(appliance: Appliance, array: Array, name: str, group: str = "db") -> None:
    """An image of the group's head holds what the array's file holds, block for block."""
    check_equal_to(appliance, array.file, name, group)


def check_equal_to(appliance: Appliance, production: Path, name: str, group: str = "db") -> None:
    """The same, of a file or block device of this host."""
    image = open_head(appliance, f"{group}/{name}")
    compare(production, image["iscsi_url"])
    appliance.cli("image", "close", f"{group}/{name}")


def open_head(appliance: Appliance, image: str) -> dict[str, Any]:
    """An image of the head, once that is consistent: an array that was out of sight is found to have been so some time later."""
    deadline = time.monotonic() + SYNCHRONISED_LIMIT_S
    while True:
        try:
            opened: dict[str, Any] = appliance.cli("image", "open", image, "--at", "head")
        except CliError as refused:
            if refused.code != "inconsistent" or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return opened


def compare(file: Path, url: str) -> None:
    """The file holds what the disk holds, block for block."""
    command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(file), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def session(volume: dict[str, Any], name: str = HOST, isid: int | None = None) -> Initiator:
    portal, iqn, _ = volume["iscsi_url"].removeprefix("iscsi://").split("/")
    return Initiator(portal, name, iqn, isid=isid)


class Load(threading.Thread):
    """A host that writes random blocks and tries again whatever does not end in GOOD."""

    def __init__(self, volume: dict[str, Any], seed: int) -> None:
        super().__init__()
        self._volume = volume
        self._blocks = int(volume["size_bytes"]) // 512
        self._random = random.Random(seed)
        self._over = threading.Event()
        self.written = 0
        self.refused = 0

    def run(self) -> None:
        while not self._over.is_set():
            try:
                with session(self._volume) as host:
                    self._write(host)
            except (RefusedError, AssertionError):
                time.sleep(0.05)

    def _write(self, host: Initiator) -> None:
        while not self._over.is_set():
            lba, blocks = self._random.randrange(self._blocks - 64), self._random.randrange(1, 64)
            data = self._random.randbytes(512) * blocks
            while not self._over.is_set():
                answer = host.write(0, lba, data)
                if answer.good:
                    self.written += 1
                    break
                self.refused += 1
                time.sleep(0.02)

    def wait_for(self, more: int) -> None:
        target, deadline = self.written + more, time.monotonic() + LOAD_LIMIT_S
        while self.written < target:
            assert time.monotonic() < deadline, f"{self.written} written, {self.refused} refused"
            time.sleep(0.01)

    def end(self) -> None:
        self._over.set()
        self.join(60)
        assert not self.is_alive()
