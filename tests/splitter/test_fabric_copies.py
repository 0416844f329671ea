"""Copies that an array makes by itself, by way of the fabric-based splitter: one service is the array, another stands before it."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.appliance import Appliance
from tests.control.initiator import INVALID_OPCODE, Answer, Initiator, RefusedError

from playhead.lab import cdb
from playhead.lab.cdb import OffsetSegment, Segment

SIZE_BYTES = 32 << 20
BLOCKS = SIZE_BYTES // 512
FILLED_BLOCKS = 16384
SYNCHRONISED_LIMIT_S = 60.0
HOST = "iqn.2026-11.example:host"

VOLUMES = {"db/one": "a/one", "db/two": "b/two", "other/three": "a/three"}
"""The replicas, and what they follow. The array copies references within its group `a`, and data from or to `b`."""

UNREACHABLE = 0x0804


class House:
    """Two services. Hosts use the LUNs of the array by way of the other."""

    def __init__(self, array: Appliance, splitter: Appliance, identity: str) -> None:
        self.array = array
        self.splitter = splitter
        for group in ("a", "b"):
            array.cli("group", "create", group)
        splitter.cli("array", "add", "san", "--portal", array.addresses["iscsi"])
        for group in ("db", "other"):
            splitter.cli("group", "create", group)
        for replica, volume in VOLUMES.items():
            array.cli("volume", "create", volume, "--size", str(SIZE_BYTES))
            _, target, lun = array.iscsi_url(volume).removeprefix("iscsi://").split("/")
            where = ("--array", "san", "--target", target, "--lun", lun, "--identity", identity)
            splitter.cli("volume", "create", replica, *where)
        self.places: dict[str, tuple[str, str, int]] = {}
        """Portal, target and LUN of each volume: the same over restarts."""
        for replica in VOLUMES:
            portal, iqn, number = splitter.iscsi_url(replica).removeprefix("iscsi://").split("/")
            self.places[replica] = (portal, iqn, int(number))
        self.synchronised()

    def synchronised(self) -> None:
        deadline = time.monotonic() + SYNCHRONISED_LIMIT_S
        for replica in VOLUMES:
            while (splitter := self.splitter.cli("volume", "show", replica)["splitter"])["state"] != "synchronised":
                assert time.monotonic() < deadline, splitter
                time.sleep(0.05)

    def session(self, replica: str) -> tuple[Initiator, int]:
        """A session of the host with the target of a volume, and the volume's LUN."""
        portal, iqn, lun = self.places[replica]
        host = Initiator(portal, HOST, iqn)
        host.attentions(lun)
        return host, lun

    def fill(self, seed: int) -> None:
        rng = random.Random(seed)
        for replica in VOLUMES:
            host, lun = self.session(replica)
            with host:
                for lba in range(0, FILLED_BLOCKS, 512):
                    assert host.write(lun, lba, rng.randbytes(512 * 512)).good

    def name(self, replica: str) -> bytes:
        """The NAA name that a host finds."""
        host, lun = self.session(replica)
        with host:
            page = host.command(lun, bytes((0x12, 1, 0x83, 2, 0, 0)), read_bytes=512).data
        at = 4
        while page[at + 1] & 0x3F != 3:
            at += 4 + page[at + 3]
        return page[at + 4 : at + 4 + page[at + 3]]

    def check_equal(self) -> None:
        """The head of every replica holds what the array has, block for block."""
        self.synchronised()
        for group in ("db", "other"):
            self.splitter.cli("image", "open", f"{group}/head", "--at", "head")
        for replica, volume in VOLUMES.items():
            group, name = replica.split("/")
            image = self.splitter.iscsi_url(f"{group}/head/{name}")
            compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw", image, self.array.nbd_url(volume)]
            done = subprocess.run(compare, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, (replica, done.stdout + done.stderr)
        for group in ("db", "other"):
            self.splitter.cli("image", "close", f"{group}/head")

    def copies(self, group: str) -> list[tuple[int, int]]:
        """First block and blocks of each COPY record."""
        dumped = self.splitter.run("journal", "dump", group, "--limit", "1000000", "-o", "json").stdout
        records = map(json.loads, dumped.splitlines())
        return [(record["lba"], record["count"]) for record in records if record["opcode"] == "COPY"]


@pytest.fixture(params=["own"])
def house(request: pytest.FixtureRequest, tmp_path: Path, appliance: Appliance) -> Iterator[House]:
    array = Appliance(tmp_path / "array", log=tmp_path / "array.log")
    array.expect("iSCSI")
    with array:
        yield House(array, appliance, request.param)
        # Before the array goes: what is said of that is no complaint.
        appliance.stop()
        array.stop()


def copy(host: Initiator, lun: int, names: list[bytes], segments: list[Segment | OffsetSegment]) -> Answer:
    command, parameters = cdb.extended_copy(names, segments)
    return host.command(lun, command, data=parameters)


@pytest.mark.parametrize("house", ["new"], indirect=True)
def test_a_copy_of_the_array_is_a_record_within_a_group_and_read_back_between_groups(house: House) -> None:
    house.fill(1)
    names = [house.name(replica) for replica in VOLUMES]
    one, two, three = range(3)
    host, lun = house.session("db/one")
    with host:
        # Within a LUN, between the group's two, both ways, in bytes and in blocks.
        assert copy(host, lun, names[:1], [Segment(one, one, 4096, 0, 20000)]).good
        assert copy(host, lun, names[:2], [OffsetSegment(one, two, 8192 * 512, 100, 30000)]).good
        halves: list[Segment | OffsetSegment] = [
            Segment(two, one, 512, 30000, 40000),
            Segment(two, one, 512, 30512, 40512),
        ]
        assert copy(host, lun, names[:2], halves).good
        assert house.copies("db") == [(20000, 4096), (30000, 8192), (40000, 1024)]
        # The record says what the source was then.
        assert host.write(lun, 0, b"\xee" * 512 * 64).good
        house.check_equal()
        # Between groups: data.
        assert copy(host, lun, names, [Segment(one, three, 2048, 0, 30000)]).good
        assert copy(host, lun, names, [Segment(three, two, 2048, 0, 50000)]).good
        assert (len(house.copies("db")), house.copies("other")) == (3, [])
        # Nobody that hosts are not shown: nobody at all, here.
        assert copy(host, lun, [names[0], b"\x61" * 16], [Segment(0, 1, 8, 0, 0)]).ascq == UNREACHABLE
        house.splitter.cli("policy", "set", "xcopy=reject", "odx=reject")
        host.attentions(lun)
        assert copy(host, lun, names[:1], [Segment(one, one, 8, 0, 60000)]).ascq == INVALID_OPCODE
        inquiry = host.command(lun, bytes((0x12, 0, 0, 0, 96, 0)), read_bytes=96).data
        assert not inquiry[5] & 0x08
    house.check_equal()


def test_tokens_of_the_array_are_used_by_way_of_playhead(house: House) -> None:
    house.fill(2)
    host, lun = house.session("db/one")
    there, other = house.session("db/two")
    with host, there:
        inquiry = host.command(lun, bytes((0x12, 0, 0, 0, 96, 0)), read_bytes=96).data
        assert inquiry[5] & 0x08
        populate, ranges = cdb.populate_token([(0, 4096), (8192, 100)], list_id=7)
        assert host.command(lun, populate, data=ranges).good
        answer = host.command(lun, cdb.receive_rod_token(7), read_bytes=2048)
        token = cdb.rod_token_of(answer.data)
        # The token stands for what was then.
        assert host.write(lun, 0, b"\xaa" * 512).good
        write, parameters = cdb.write_using_token(token, [(20000, 4000), (30000, 196)], list_id=8)
        assert there.command(other, write, data=parameters).good
        assert host.command(lun, write, data=parameters).good
        house.check_equal()
        # Less than was asked for.
        write, parameters = cdb.write_using_token(token, [(40000, 8000)], list_id=9)
        there.command(other, write, data=parameters)
    house.check_equal()
    assert house.copies("db") == []


class Load(threading.Thread):
    """A host that copies and writes at random, and tries again whatever does not end in GOOD."""

    def __init__(self, house: House, names: list[bytes], seed: int) -> None:
        super().__init__()
        self._house = house
        self._names = names
        self._random = random.Random(seed)
        self._over = threading.Event()
        self.done = 0
        self.refused = 0

    def run(self) -> None:
        while not self._over.is_set():
            try:
                host, lun = self._house.session("db/one")
                with host:
                    while not self._over.is_set():
                        answer = self._step(host, lun)
                        self.done += answer.good
                        self.refused += not answer.good
                        if not answer.good:
                            time.sleep(0.02)
            except (RefusedError, AssertionError):
                time.sleep(0.05)

    def _step(self, host: Initiator, lun: int) -> Answer:
        rng = self._random
        if rng.random() < 0.4:
            lba, blocks = rng.randrange(BLOCKS - 64), rng.randrange(1, 64)
            return host.write(lun, lba, rng.randbytes(512) * blocks)
        segments: list[Segment | OffsetSegment] = []
        for _ in range(rng.randrange(1, 4)):
            blocks = rng.choice((8, 100, 4096, 16384))
            source, to = rng.randrange(3), rng.randrange(3)
            segments.append(Segment(source, to, blocks, rng.randrange(BLOCKS - blocks), rng.randrange(BLOCKS - blocks)))
        return copy(host, lun, self._names, segments)

    def wait_for(self, more: int) -> None:
        target, deadline = self.done + more, time.monotonic() + 60
        while self.done < target:
            assert time.monotonic() < deadline, f"{self.done} done, {self.refused} refused"
            time.sleep(0.01)

    def end(self) -> None:
        self._over.set()
        self.join(60)
        assert not self.is_alive()


@pytest.mark.expect_log("hosts are told to wait")
@pytest.mark.expect_log("array")
@pytest.mark.expect_log("resynchronisation waits")
def test_copies_that_a_crash_of_either_side_leaves_half_done_are_compared(house: House) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    house.fill(3)
    names = [house.name(replica) for replica in VOLUMES]
    loads = [Load(house, names, seed + n) for n in range(2)]
    for load in loads:
        load.start()
    try:
        for dying in (house.array, house.splitter, house.array):
            loads[0].wait_for(20)
            dying.kill()
            time.sleep(0.2)
            dying.start()
            loads[1].wait_for(20)
    finally:
        for load in loads:
            load.end()
    house.check_equal()
    assert any(load.refused for load in loads)
