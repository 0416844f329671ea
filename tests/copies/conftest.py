"""What the tests of copies share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.appliance import Appliance
from tests.control import io

from .near import place, url


@pytest.fixture
def group(appliance: Appliance, tmp_path: Path) -> Appliance:
    """A group `db` with volumes `data` and `wal`, something in the first, and a copy `near`."""
    appliance.cli("group", "create", "db")
    appliance.cli("volume", "create", "db/data", "--size", "64M")
    appliance.cli("volume", "create", "db/wal", "--size", "16M")
    io.write(url(appliance), 0x11)
    appliance.cli("copy", "add", "db/near", "--directory", str(place(tmp_path)))
    return appliance
