"""Several portals of one appliance: a host with a session by each keeps its disks when one way is gone."""

from __future__ import annotations

import random
import socket
import struct

import pytest
from tests.appliance import Appliance

from playhead.lab import cdb
from playhead.lab.session import Session

BLOCK = cdb.BLOCK_BYTES

pytestmark = pytest.mark.serve("--iscsi", "127.0.0.1:0", "--iscsi", "127.0.0.2:0")


@pytest.fixture
def iqn(appliance: Appliance) -> str:
    """The target of a LUN of 64 MiB."""
    appliance.cli("group", "create", "g")
    appliance.cli("volume", "create", "g/v", "--size", "64MiB")
    return str(appliance.disk("g/v")["iqn"])


def test_discovery_at_any_portal_names_all_its_own_first(appliance: Appliance, iqn: str) -> None:
    portals = appliance.ready["iscsi_portals"]
    assert len(portals) == 2
    for here, other in (portals, reversed(portals)):
        with Session(here, None) as discovery:
            found = discovery.text([("SendTargets", "All")])
        assert found == [("TargetName", iqn), ("TargetAddress", f"{here},1"), ("TargetAddress", f"{other},1")]


def test_one_way_goes_and_the_other_stays(appliance: Appliance, iqn: str) -> None:
    data = random.Random(7).randbytes(256 * BLOCK)
    first, second = (
        Session(portal, iqn, isid=number) for number, portal in enumerate(appliance.ready["iscsi_portals"], 1)
    )
    with first, second:
        for session in (first, second):
            session.ready()
        # One LUN, one port of it, by either way.
        page = first.must(cdb.inquiry(0x83), read_bytes=1024)
        assert page == second.must(cdb.inquiry(0x83), read_bytes=1024)
        groups = bytes((0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0))
        told = first.must(groups, read_bytes=256)
        assert told == second.must(groups, read_bytes=256)
        assert told[11] == 1, "one port"
        # Each session is a nexus of its own: what the one reserves is not the other's until its way is gone.
        first.must(cdb.reserve_6())
        assert second.execute(cdb.write_16(0, 1), data=data[:BLOCK]).status == 0x18
        first.must(cdb.write_16(0, 128), data=data[: 128 * BLOCK])
        for lba in range(1000, 1008):
            first.start(cdb.write_16(lba, 1), data=data[:BLOCK])
        # As a cable that is pulled and a machine that gives up: a reset, no goodbye.
        first.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        first.close()
        while (answer := second.execute(cdb.write_16(128, 128), data=data[128 * BLOCK :])).status == 0x18:
            pass  # the service has yet to notice
        assert answer.good
        assert second.must(cdb.read_16(0, 256), read_bytes=len(data)) == data
        assert [session["name"] for session in appliance.cli("target", "sessions")] == [iqn]
