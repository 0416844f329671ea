"""What all tests share: the real service on a store of its own, and the demand that it logs no complaint nobody expected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.appliance import Appliance
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

SPLITTERS_IN_THE_GUEST = ("test_array", "test_attach", "test_path_flip")
"""Files of `tests/vm` about splitters."""
OWN_GUEST = ("test_boot", "test_ublk")
"""Files of `tests/vm` that share no guest with others."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long tests too, at their full length")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """With several workers a file's tests stay together, and so do those that share the one guest."""
    return ByFile(config, log)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out whole files, and the rest of `tests/vm` as two: each worker has a guest of its own, so that neither is left with all of them."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        if Path(path).parent.name != "vm" or Path(path).stem in OWN_GUEST:
            return path
        return f"vm with {'another array' if Path(path).stem in SPLITTERS_IN_THE_GUEST else 'Playhead'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The guest's tests are the longest that stay together, so they begin first: else one worker has them left at the end.
    items.sort(key=lambda item: item.path.parent.name != "vm")
    if config.getoption("--soak"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="long: only with --soak"))


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether this is the long run."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture
def own_appliance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Appliance]:
    """A running service. At the end it must stop cleanly and have logged no warning that `expect_log` does not name."""
    options = [str(option) for marker in request.node.iter_markers("serve") for option in marker.args]
    running = Appliance(tmp_path / "store", *options)
    for marker in request.node.iter_markers("expect_log"):
        running.expect(marker.args[0])
    running.start()
    try:
        yield running
    finally:
        if running.process is not None:
            running.stop()
    assert not running.complaints(), "complaints in the log:\n" + "\n".join(running.complaints())


@pytest.fixture
def appliance(own_appliance: Appliance) -> Appliance:
    """The same. The tests of the guest call by this name what they all use together."""
    return own_appliance
