"""The fabric-based splitter in front of an array that fails in every way that a standard has a word for: whatever it answers, the host hears
of it as it is, and the volume holds what the array holds."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.appliance import Appliance, wait_until
from tests.control.initiator import Answer, Initiator
from tests.lab.liar import BLOCK, Ended
from tests.splitter.fabric import check_equal_to, compare, open_head, session, synchronised
from tests.splitter.moody import (
    FLUSH,
    LUN,
    LUNS_CHANGED,
    POWER_ON,
    READ,
    TEST_UNIT_READY,
    WRITE,
    Fault,
    Moody,
    failing,
    name_of,
)

from playhead.lab import cdb

BUSY, RESERVATION_CONFLICT, TASK_SET_FULL, ACA_ACTIVE = 0x08, 0x18, 0x28, 0x30
LENGTH = 64

pytestmark = pytest.mark.expect_log("array|production|lost")


@pytest.fixture
def array(tmp_path: Path) -> Iterator[Moody]:
    with Moody(tmp_path) as array:
        yield array


@pytest.fixture
def host(array: Moody, appliance: Appliance) -> Iterator[Initiator]:
    appliance.cli("array", "add", "san", "--portal", array.portal)
    appliance.cli("group", "create", "db")
    appliance.cli("volume", "create", "db/data", "--array", "san", "--target", array.target, "--lun", str(LUN))
    with session(synchronised(appliance)) as host:
        assert write(host, 0, b"\x01" * LENGTH * BLOCK).good
        yield host


def write(host: Initiator, lba: int, data: bytes) -> Answer:
    return host.command(0, struct.pack(">BxQI2x", WRITE, lba, len(data) // BLOCK), data=data)


def resynchronisations(appliance: Appliance) -> int:
    lines = appliance.run("journal", "dump", "db", "--limit", "1000000", "-o", "json").stdout.splitlines()
    return sum(record["opcode"] == "RESYNC_BEGIN" for record in map(json.loads, lines))


NOTHING = {
    "busy": Ended(status=BUSY),
    "reserved": Ended(status=RESERVATION_CONFLICT),
    "full": Ended(status=TASK_SET_FULL),
    "contingent": Ended(status=ACA_ACTIVE),
    "protected": failing(7, 0x2700),
    "illegal": failing(5, 0x2400),
    "attention": failing(6, 0x2A01),
}


def test_what_the_array_did_not_begin_is_told_and_costs_nothing(
    array: Moody, appliance: Appliance, host: Initiator
) -> None:
    before = resynchronisations(appliance)
    for name, ended in NOTHING.items():
        array.faults = [Fault(WRITE, ended)]
        answer = write(host, 8, b"\x02" * LENGTH * BLOCK)
        assert answer.status == ended.status, name
        assert not array.faults
        assert answer.ascq == int.from_bytes(ended.sense[12:14]), name
    assert write(host, 8, b"\x03" * LENGTH * BLOCK).good
    synchronised(appliance)
    check_equal_to(appliance, array.file, "after")
    assert resynchronisations(appliance) == before


HALF_WAY = {
    "not ready": failing(2, 0x0402),
    "medium": failing(3, 0x0C00),
    "hardware": failing(4, 0x4400),
    "aborted": failing(0xB, 0x4700),
    "recovered": failing(1, 0x0C01),
    "no room": failing(7, 0x2707),
    "task aborted": Ended(status=0x40),
    "short": Ended(left_over_bytes=LENGTH // 2 * BLOCK),
}


def test_what_ends_half_way_is_told_and_read_back(array: Moody, appliance: Appliance, host: Initiator) -> None:
    lba = 0
    for executed in (0.5, 1.0):
        for name, ended in HALF_WAY.items():
            lba += 2 * LENGTH
            array.faults = [Fault(WRITE, ended, executed=executed)]
            answer = write(host, lba, b"\x02" * LENGTH * BLOCK)
            assert answer.status == ended.status, name
            assert answer.ascq == int.from_bytes(ended.sense[12:14]), name
            assert not array.faults
        lba += 2 * LENGTH
        array.faults = [Fault(WRITE, Ended(status=0x22), executed=executed)]
        assert not write(host, lba, b"\x03" * LENGTH * BLOCK).good, "a status that nobody has heard of"
        lba += 2 * LENGTH
        array.faults = [Fault(WRITE, None, executed=executed)]
        answer = write(host, lba, b"\x04" * LENGTH * BLOCK)
        assert (answer.status, answer.ascq) == (2, 0x0800), "a connection that ends"
        # BUSY until there is another, and its attention.
        wait_until(lambda at=lba: write(host, at + LENGTH, b"\x05" * BLOCK).good, "the array is used again")
    synchronised(appliance)
    check_equal_to(appliance, array.file, "after")


def test_what_only_the_array_knows_is_read_back_before_the_host_is_answered(
    array: Moody, appliance: Appliance, host: Initiator
) -> None:
    before = resynchronisations(appliance)
    for lba in range(0, LENGTH, 8):
        assert host.unmap(0, lba, 5).good
        array.faults = [Fault(WRITE, Ended(left_over_bytes=LENGTH // 2 * BLOCK), executed=0.5)]
        assert write(host, 1000 + lba, bytes((lba + 1,)) * LENGTH * BLOCK).good
        # No point of this time is out of step.
        appliance.cli("bookmark", "create", f"db/at-{lba}")
    assert appliance.cli("volume", "show", "db/data")["splitter"]["state"] == "synchronised"
    assert resynchronisations(appliance) == before
    appliance.cli("image", "open", "db/then", "--at", f"at-{LENGTH // 2}")
    appliance.cli("image", "close", "db/then")
    check_equal_to(appliance, array.file, "after")


def test_an_error_of_earlier_writes_has_all_of_the_lun_compared(
    array: Moody, appliance: Appliance, host: Initiator
) -> None:
    assert write(host, 4096, b"\x02" * BLOCK).good
    # Flushed long ago, and lost by the array on the way to its disks.
    assert host.command(0, bytes((FLUSH,)) + bytes(9)).good
    synchronised(appliance)
    array.faults = [
        Fault(WRITE, failing(3, 0x0C00, deferred=True), also=lambda: array.put(4096, b"\x99" * BLOCK)),
    ]
    answer = write(host, 8, b"\x03" * BLOCK)
    assert (answer.status, answer.ascq) == (2, 0x0C00)
    synchronised(appliance)
    check_equal_to(appliance, array.file, "after")


def test_an_array_that_was_reset_in_the_midst_of_a_session_may_have_lost_what_was_not_flushed(
    array: Moody, appliance: Appliance, host: Initiator
) -> None:
    # A host hears of it.
    array.faults = [
        Fault(WRITE, failing(6, 0x2901), also=lambda: array.put(0, b"\x97" * BLOCK)),
    ]
    assert write(host, 200, b"\x05" * BLOCK).status == 2
    synchronised(appliance)
    check_equal_to(appliance, array.file, "after-write")
    # Playhead's own flush, that of a stop, finds it.
    array.faults = [
        Fault(FLUSH, failing(6, 0x2904), also=lambda: array.put(100, b"\x98" * BLOCK)),
    ]
    assert write(host, 100, b"\x04" * BLOCK).good
    appliance.restart()
    assert not array.faults
    synchronised(appliance)
    check_equal_to(appliance, array.file, "after-flush")


def test_short_reads_and_a_busy_array_hold_a_resynchronisation_up_and_do_not_spoil_it(
    array: Moody, appliance: Appliance, host: Initiator
) -> None:
    array.put(3000, b"\x55" * 100 * BLOCK)
    array.faults = [
        Fault(READ, Ended(), executed=0.5),
        Fault(READ, Ended(status=BUSY)),
        Fault(READ, Ended(), executed=0.25),
        Fault(READ, failing(6, 0x2A01)),
        Fault(READ, failing(3, 0x1100)),
        Fault(READ, None),
        Fault(READ, Ended(status=TASK_SET_FULL)),
    ]
    appliance.cli("volume", "resync", "db/data")
    assert write(host, 3050, b"\x06" * BLOCK).good
    synchronised(appliance)
    assert not array.faults
    check_equal_to(appliance, array.file, "after")
    # A host is told how much there was.
    array.faults = [Fault(READ, Ended(), executed=0.5)]
    read = struct.pack(">BxQI2x", READ, 3000, 8)
    assert len(host.command(0, read, read_bytes=8 * BLOCK).data) == 4 * BLOCK


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Moody]:
    with Moody(tmp_path, luns=2) as array:
        yield array


@pytest.fixture
def two(pair: Moody, appliance: Appliance) -> Iterator[tuple[Moody, Initiator]]:
    """An array whose LUNs 0 and 1 are followed by two volumes of one group, and a host that uses them by the same numbers."""
    appliance.cli("array", "add", "san", "--portal", pair.portal)
    appliance.cli("group", "create", "db")
    for name, lun in (("data", "0"), ("log", "1")):
        appliance.cli("volume", "create", f"db/{name}", "--array", "san", "--target", pair.target, "--lun", lun)
        volume = synchronised(appliance, f"db/{name}")
        assert volume["iscsi_url"].endswith(f"/{lun}")
    with session(volume) as host:
        assert host.test_unit_ready(0).good
        assert host.test_unit_ready(1).good
        yield pair, host


def copy(host: Initiator, segments: list[tuple[int, int, int, int, int]]) -> Answer:
    """At LUN 1: source, destination, blocks, source LBA, LBA."""
    command, parameters = cdb.extended_copy([name_of(0), name_of(1)], [cdb.Segment(*segment) for segment in segments])
    return host.command(1, command, data=parameters)


def records(appliance: Appliance, opcode: str) -> int:
    lines = appliance.run("journal", "dump", "db", "--limit", "1000000", "-o", "json").stdout.splitlines()
    return sum(record["opcode"] == opcode for record in map(json.loads, lines))


def check_both(appliance: Appliance, array: Moody, image: str) -> None:
    for name in ("data", "log"):
        synchronised(appliance, f"db/{name}")
    open_head(appliance, f"db/{image}")
    for lun, name in enumerate(("data", "log")):
        compare(array.file_of(lun), appliance.iscsi_url(f"db/{image}/{name}"))
    appliance.cli("image", "close", f"db/{image}")


def test_a_copy_is_not_believed_of_a_source_that_was_too_busy_to_say_that_it_had_lost_power(
    two: tuple[Moody, Initiator], appliance: Appliance
) -> None:
    array, host = two
    old, new = b"\x01" * LENGTH * BLOCK, b"\x02" * LENGTH * BLOCK
    assert write(host, 100, old).good
    assert copy(host, [(0, 1, LENGTH, 100, 1000)]).good
    assert records(appliance, "COPY") == 1
    assert write(host, 100, new).good
    # The destination says so at once, to the host and to Playhead; the source when it is asked again.
    array.faults = [Fault(TEST_UNIT_READY, Ended(status=BUSY), lun=0)]
    array.lose_power(0, 100, old)
    assert host.test_unit_ready(1).ascq == POWER_ON[1]
    wait_until(lambda: not array.faults, "the source is asked")
    assert copy(host, [(0, 1, LENGTH, 100, 2000)]).good
    check_both(appliance, array, "after")
    # What happened to the past of one is no reason to distrust what comes.
    assert copy(host, [(0, 1, LENGTH, 100, 3000)]).good
    check_both(appliance, array, "later")
    assert records(appliance, "COPY") >= 2


def test_a_copy_is_not_believed_when_a_host_hears_of_the_power_loss_as_the_first_thing(
    two: tuple[Moody, Initiator], appliance: Appliance
) -> None:
    array, host = two
    old, new = b"\x01" * LENGTH * BLOCK, b"\x02" * LENGTH * BLOCK
    assert write(host, 100, old).good
    assert write(host, 100, new).good
    # One that has not spoken to the destination yet: nobody can tell its first attention from that of a login.
    with session(appliance.cli("volume", "show", "db/log"), isid=77) as other:
        assert other.test_unit_ready(0).good
        array.lose_power(0, 100, old)
        assert other.test_unit_ready(1).ascq == POWER_ON[1]
        assert copy(other, [(0, 1, LENGTH, 100, 2000)]).good
    check_both(appliance, array, "after")


TOO_MANY_SEGMENTS = 0x2608


def test_of_an_array_that_does_not_say_how_many_segments_it_takes_they_are_read_back(
    two: tuple[Moody, Initiator], appliance: Appliance
) -> None:
    array, host = two
    assert write(host, 100, b"\x01" * LENGTH * BLOCK).good
    # It runs the first, and says GOOD.
    array.segments_run = 1
    before = resynchronisations(appliance)
    assert copy(host, [(0, 1, 8, 100, 1000), (0, 1, 8, 108, 3000)]).good
    assert records(appliance, "COPY") == 0
    assert resynchronisations(appliance) == before
    check_both(appliance, array, "after")
    assert copy(host, [(0, 1, 8, 100, 2000)]).good
    assert records(appliance, "COPY") == 1
    check_both(appliance, array, "later")


def test_an_array_is_given_no_more_segments_than_it_says_it_takes(
    two: tuple[Moody, Initiator], appliance: Appliance
) -> None:
    array, host = two
    array.segments_max = 2
    # It is asked once a session.
    array.faults = [Fault(TEST_UNIT_READY, None)]
    host.command(1, bytes(6))
    wait_until(lambda: host.test_unit_ready(1).good, "the array is used again")
    assert write(host, 100, b"\x01" * LENGTH * BLOCK).good
    for name in ("data", "log"):
        synchronised(appliance, f"db/{name}")
    segments = [(0, 1, 8, 100, 1000), (0, 1, 8, 108, 3000), (0, 1, 8, 116, 5000)]
    assert copy(host, segments).ascq == TOO_MANY_SEGMENTS
    wait_until(lambda: copy(host, segments[:2]).good and records(appliance, "COPY"), "the array has said what it takes")
    check_both(appliance, array, "after")


def went_away(array: Moody, _: Appliance) -> None:
    array.hang_up()


def says_so(array: Moody, _: Appliance) -> None:
    array.attend_to(LUNS_CHANGED)


def meanwhile(_: Moody, appliance: Appliance) -> None:
    appliance.restart()


def killed_meanwhile(_: Moody, appliance: Appliance) -> None:
    appliance.kill()
    appliance.start()


def persist(host: Initiator, lba: int, data: bytes) -> None:
    """Writes until it is written: what the host is told before is its own business."""
    while not write(host, lba, data).good:
        time.sleep(0.02)


@pytest.mark.parametrize("then", [went_away, says_so, meanwhile, killed_meanwhile])
def test_a_lun_number_that_comes_to_be_another_disk_is_compared_with_that(
    tmp_path: Path, appliance: Appliance, then: Callable[[Moody, Appliance], None]
) -> None:
    with Moody(tmp_path, luns=2) as array:
        array.put(100, b"\x02" * LENGTH * BLOCK)
        appliance.cli("array", "add", "san", "--portal", array.portal)
        appliance.cli("group", "create", "db")
        appliance.cli("volume", "create", "db/data", "--array", "san", "--target", array.target, "--lun", str(LUN))
        with session(synchronised(appliance)) as host:
            assert write(host, 0, b"\x01" * LENGTH * BLOCK).good
            array.swap(0, 1)
            then(array, appliance)
            if then in (went_away, says_so):
                persist(host, 4000, b"\x03" * LENGTH * BLOCK)
        check_equal_to(appliance, array.file, "another")


def test_what_was_under_way_by_another_portal_group_is_not_over_when_a_session_by_this_one_begins(
    tmp_path: Path, appliance: Appliance
) -> None:
    late = b"\x07" * LENGTH * BLOCK
    with Moody(tmp_path, luns=2) as array:
        first = array.open_other()
        appliance.cli("array", "add", "san", "--portal", first, "--portal", array.portal)
        appliance.cli("group", "create", "db")
        for lun, path in enumerate(("db/data", "db/beside")):
            appliance.cli("volume", "create", path, "--array", "san", "--target", array.target, "--lun", str(lun))
        synchronised(appliance, "db/beside")
        with session(synchronised(appliance)) as host:
            assert write(host, 0, b"\x01" * LENGTH * BLOCK).good
            # One of two controllers is cut off with a write in its queue; the other one knows nothing of that session.
            array.faults.append(Fault(WRITE, None, also=array.close_other))
            assert not write(host, 500, late).good
            # Hosts go on by the other way, also where that write may come yet.
            for lba in (500, 1000):
                persist(host, lba, b"\x02" * LENGTH * BLOCK)
        synchronised(appliance, "db/beside")
        splitter = appliance.cli("volume", "show", "db/data")["splitter"]
        assert splitter["state"] == "resynchronising" and "portal" in splitter["reason"], splitter
        with array.one:
            array.disk_of(0)[500 * BLOCK : 500 * BLOCK + len(late)] = late
        # A session of that name there, and it is over for certain.
        array.open_other()
        synchronised(appliance)
        check_equal_to(appliance, array.file, "after")
