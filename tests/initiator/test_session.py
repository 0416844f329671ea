"""The initiator against the service: what later tests rely on it for."""

from __future__ import annotations

import random

import pytest
from tests.appliance import Appliance

from playhead.lab import cdb, pdu
from playhead.lab.session import LoginError, Session

BLOCK = cdb.BLOCK_BYTES


@pytest.fixture
def lun(appliance: Appliance) -> tuple[str, str]:
    """Address and target name of a LUN of 64 MiB."""
    appliance.cli("group", "create", "g")
    appliance.cli("volume", "create", "g/v", "--size", "64MiB")
    return appliance.addresses["iscsi"], str(appliance.disk("g/v")["iqn"])


KEYS: list[dict[str, str]] = [
    {},
    {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"},
    {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "8192", "FirstBurstLength": "4096"},
    {"MaxRecvDataSegmentLength": "512", "FirstBurstLength": "1024"},
]


def test_what_is_written_is_read_whatever_was_negotiated(lun: tuple[str, str]) -> None:
    for seed, keys in enumerate(KEYS):
        data = random.Random(seed).randbytes(700 * BLOCK)
        with Session(*lun, keys=keys) as session:
            session.ready()
            before = session.wire.bytes
            session.must(cdb.write_16(5, 700), data=data)
            assert session.must(cdb.read_16(5, 700), read_bytes=len(data)) == data, keys
            assert session.wire.bytes - before > 2 * len(data)
            tags = [session.start(cdb.read_16(5 + i, 1), read_bytes=BLOCK) for i in range(64)]
            for i, itt in enumerate(tags):
                assert session.finish(itt).data == data[i * BLOCK : (i + 1) * BLOCK]
            session.log_out()


def test_refusals_residuals_pings_texts_and_task_management_come_through(lun: tuple[str, str]) -> None:
    with Session(*lun) as session:
        session.ready()
        refused = session.execute(cdb.read_16(1 << 40, 1), read_bytes=BLOCK)
        assert (refused.status, refused.key_code) == (2, (5, 0x2100))
        assert session.execute(cdb.read_16(0, 1), read_bytes=2 * BLOCK).residual_bytes == BLOCK
        assert session.execute(cdb.read_16(0, 2), read_bytes=BLOCK).residual_bytes == -BLOCK
        differs = session.execute(cdb.compare_and_write(0, 1), data=b"\0" * 9 + b"x" + bytes(1014))
        assert (differs.key_code, differs.information) == ((0xE, 0x1D00), 9)
        assert session.ping(b"hello") == b"hello"
        assert ("TargetName", lun[1]) in session.text([("SendTargets", "All")])
        assert session.task_management(pdu.LUN_RESET) == 0
        assert session.execute(bytes(6)).attention


@pytest.mark.expect_log("login refused")
def test_a_login_can_be_refused(lun: tuple[str, str]) -> None:
    with pytest.raises(LoginError) as refused:
        Session(lun[0], "iqn.2026-11.org.example:nobody")
    assert refused.value.status == 0x0203
    with Session(lun[0], None) as discovery:
        assert ("TargetName", lun[1]) in discovery.text([("SendTargets", "All")])
