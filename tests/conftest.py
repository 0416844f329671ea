"""What all tests share: the real service on a store of its own, and the demand that it logs no complaint nobody expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.appliance import Appliance


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long tests too, at their full length")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    known: Counter[str] = Counter()
    for item in items:
        # Workers know tests by their names, and drop all but one of a name. Generated tests (one for each operation of the API) share theirs.
        known[item.nodeid] += 1
        if known[item.nodeid] > 1:
            item._nodeid += f"[{known[item.nodeid]}]"  # type: ignore[attr-defined]
        # With several workers a file's tests stay together, and so do those that share the one guest.
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder == "vm" else str(item.path)))
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
def appliance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Appliance]:
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
