"""libiscsi's suite against an array alone and against the same LUN by way of Playhead: what differs, and why.

As a program: ``python3 -m tests.splitter.suite [FAMILY[.TEST]...]`` prints every test that comes to something else. The array is tgtd; with
``SUITE_ARRAY=lio`` it is Linux's own target in a virtual machine, which takes long.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Protocol

from tests.appliance import Appliance
from tests.conformance import iscsi_test_cu, suites
from tests.conformance.places import SIZE_BYTES, Place
from tests.splitter.tgtd import Tgtd
from tests.vm.lio import Lio

ATTACH_LIMIT_S = 120.0


class Array(Protocol):
    """An array with one LUN that is a file of this host, byte for byte."""

    target: str
    lun: int
    file: Path

    @property
    def portal(self) -> str:
        """ADDRESS:PORT."""
        ...

    @property
    def url(self) -> str:
        """The LUN without Playhead."""
        ...


class One:
    """A single LUN, whatever the place."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = url

    def arguments(self, place: Place) -> list[str]:
        return [self._url, self._url] if place is Place.TWO_PORTALS else [self._url]


def attach(appliance: Appliance, array: Array) -> str:
    """A volume `suite/lun` that follows the array's LUN, synchronised; its URL."""
    appliance.cli("array", "add", "san", "--portal", array.portal)
    appliance.cli("group", "create", "suite")
    where = ("--array", "san", "--target", array.target, "--lun", str(array.lun))
    url = str(appliance.cli("volume", "create", "suite/lun", *where)["iscsi_url"])
    deadline = time.monotonic() + ATTACH_LIMIT_S
    while appliance.cli("volume", "show", "suite/lun")["splitter"]["state"] != "synchronised":
        assert time.monotonic() < deadline, "the volume does not become synchronised"
        time.sleep(0.2)
    return url


def differences(
    appliance: Appliance, array: Array, chosen: list[str], patience: float = 1.0
) -> dict[str, tuple[str, str]]:
    """Test -> (what it comes to on the array alone, what by way of Playhead), where that is not the same."""
    # On an array that is slow, `patience` times as long as otherwise.
    suite = suites.installed()
    assert suite is not None, "iscsi-test-cu is not installed"
    direct = iscsi_test_cu.Run(suite, One("the array", array.url), patience=patience).all(chosen)
    through = iscsi_test_cu.Run(suite, One("Playhead", attach(appliance, array)), patience=patience).all(chosen)
    return {test: (outcome, through[test]) for test, outcome in direct.items() if through[test] != outcome}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="playhead-suite-") as name:
        folder = Path(name)
        kind = Lio if os.environ.get("SUITE_ARRAY") == "lio" else Tgtd
        with kind(folder, SIZE_BYTES) as array, Appliance(folder / "store") as appliance:
            found = differences(appliance, array, sys.argv[1:], 5.0 if kind is Lio else 1.0)
    for test, (direct, through) in sorted(found.items()):
        print(f"{test}: the array {direct}, by way of Playhead {through}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
