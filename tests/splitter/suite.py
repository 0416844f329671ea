"""libiscsi's suite against tgtd alone and against the same LUN by way of Playhead: what differs, and why.

As a program: ``python3 -m tests.splitter.suite [FAMILY[.TEST]...]`` prints every test that comes to something else.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.appliance import Appliance
from tests.conformance import iscsi_test_cu, suites
from tests.conformance.places import SIZE_BYTES, Place
from tests.splitter import tgtd
from tests.splitter.tgtd import Tgtd

ATTACH_LIMIT_S = 120.0


class One:
    """A single LUN, whatever the place."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = url

    def arguments(self, place: Place) -> list[str]:
        return [self._url, self._url] if place is Place.TWO_PORTALS else [self._url]


def attach(appliance: Appliance, array: Tgtd) -> str:
    """A volume `suite/lun` that follows the array's LUN, synchronised; its URL."""
    appliance.cli("array", "add", "san", "--portal", array.portal)
    appliance.cli("group", "create", "suite")
    where = ("--array", "san", "--target", tgtd.TARGET, "--lun", str(tgtd.LUN))
    url = str(appliance.cli("volume", "create", "suite/lun", *where)["iscsi_url"])
    deadline = time.monotonic() + ATTACH_LIMIT_S
    while appliance.cli("volume", "show", "suite/lun")["splitter"]["state"] != "synchronised":
        assert time.monotonic() < deadline, "the volume does not become synchronised"
        time.sleep(0.2)
    return url


def differences(appliance: Appliance, array: Tgtd, chosen: list[str]) -> dict[str, tuple[str, str]]:
    """Test -> (what it comes to on tgtd alone, what by way of Playhead), where that is not the same."""
    suite = suites.installed()
    assert suite is not None, "iscsi-test-cu is not installed"
    direct = iscsi_test_cu.Run(suite, One("tgtd", array.url)).all(chosen)
    through = iscsi_test_cu.Run(suite, One("Playhead", attach(appliance, array))).all(chosen)
    return {test: (outcome, through[test]) for test, outcome in direct.items() if through[test] != outcome}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="playhead-suite-") as name:
        folder = Path(name)
        with Tgtd(folder, SIZE_BYTES) as array, Appliance(folder / "store") as appliance:
            found = differences(appliance, array, sys.argv[1:])
    for test, (direct, through) in sorted(found.items()):
        print(f"{test}: tgtd {direct}, by way of Playhead {through}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
