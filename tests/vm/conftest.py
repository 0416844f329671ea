"""What the VM tests share: one guest, one appliance.

`PLAYHEAD_VM_APPLIANCE` chooses the storage under test: `playhead` (the default) or `peers`, other people's servers.
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .appliance import Appliance
from .lio import Lio
from .machine import Machine
from .peers import PeerAppliance
from .playhead import PlayheadAppliance

FAILED = pytest.StashKey[bool]()

ARRAY_BYTES = 64 << 20
"""An emulated array gives about 20 MiB in a second."""

# What the guest's kernel says at level warning or worse without anybody having done wrong.
EXPECTED_OF_THE_KERNEL = (
    # A unit attention that every target owes a new session (SAM-5 5.14, 29h/00h), and that Linux logs as a warning.
    "Power-on or device reset occurred",
    # Another one, 2Ah: somebody else preempted or released a reservation (SPC-4 5.13.11).
    "Parameters changed",
    # nbd-client -d.
    "shutting down sockets",
    # LIO says of a disk what the disk says: of QEMU's NVMe, that 512 bytes are the best.
    "Optimal transfer size 512 bytes < PAGE_SIZE",
    # The host is busy and held up the emulation.
    "hrtimer: interrupt took",
    "perf: interrupt took too long",
)


class Guest:
    """Keeps one machine for all tests, until one fails: what that one left attached would spoil the next."""

    def __init__(self) -> None:
        self._machine: Machine | None = None

    def machine(self) -> Machine:
        """The running machine, booted if need be."""
        if self._machine is None:
            self._machine = Machine().__enter__()
        return self._machine

    def drop(self) -> None:
        """Ends the machine."""
        if self._machine is not None:
            self._machine.close()
            self._machine = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remembers on the test that it failed, for the fixtures' teardown."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    """The holder of the machine."""
    holder = Guest()
    yield holder
    holder.drop()


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """The storage under test."""
    wanted = os.environ.get("PLAYHEAD_VM_APPLIANCE", "playhead")
    folder: Path = tmp_path_factory.mktemp("appliance")
    if wanted == "peers":
        with PeerAppliance(folder) as peers:
            yield peers
    elif wanted == "playhead":
        with PlayheadAppliance(folder) as playhead:
            yield playhead
    else:
        pytest.fail(f"PLAYHEAD_VM_APPLIANCE is {wanted!r}; known are 'playhead' and 'peers'")


@pytest.fixture(scope="session")
def array_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lio]:
    """The other array, switched on once for all tests."""
    with Lio(tmp_path_factory.mktemp("array"), ARRAY_BYTES) as array:
        yield array


@pytest.fixture
def array(array_machine: Lio) -> Lio:
    """Linux's own target as another array, with nothing on its LUN."""
    array_machine.blank()
    return array_machine


@pytest.fixture
def playhead(appliance: Appliance) -> PlayheadAppliance:
    """The appliance, if it is Playhead: the peers have neither all of these commands nor a journal."""
    if not isinstance(appliance, PlayheadAppliance):
        pytest.skip(f"{appliance.name} has no journal")
    return appliance


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """Random data of a seed that is printed."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    yield random.Random(seed)


@pytest.fixture
def machine(request: pytest.FixtureRequest, guest: Guest, appliance: Appliance) -> Iterator[Machine]:
    """The guest, with the demand that neither its kernel nor the appliance complains during the test."""
    running = guest.machine()
    running.clear_kernel_log()
    said_before = len(appliance.complaints())
    yield running
    if request.node.stash.get(FAILED, False):
        guest.drop()
        return
    complaints = [
        line for line in running.kernel_complaints() if not any(expected in line for expected in EXPECTED_OF_THE_KERNEL)
    ]
    complaints += appliance.complaints()[said_before:]
    if complaints:
        guest.drop()
        pytest.fail("complaints in the logs:\n" + "\n".join(complaints))
