"""The copy `near` of group `db`, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.appliance import Appliance
from tests.control import io

PATIENCE_S = 60.0


def place(tmp_path: Path) -> Path:
    return tmp_path / "other-disk" / "db"


def url(appliance: Appliance, volume: str = "data") -> str:
    return str(appliance.cli("volume", "show", f"db/{volume}")["nbd_url"])


def wait_for(appliance: Appliance, what: Callable[[dict[str, Any]], bool], copy: str = "db/near") -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found: dict[str, Any] = appliance.cli("copy", "show", copy)
        if what(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def level(appliance: Appliance) -> dict[str, Any]:
    head = appliance.cli("group", "head", "db")["lsn"]
    return wait_for(
        appliance, lambda c: c["state"] == "synchronised" and c["lag_bytes"] == 0 and c["durable_lsn"] >= head
    )


def wait_for_pattern(url: str, pattern: int, offset: str = "0", length: str = "1M", *, read_only: bool = False) -> None:
    """Until the disk is there again; then it must hold that."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            io.check(url, pattern, offset, length, read_only)
            return
        except io.IoFailedError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
