"""Block devices of this host where the kernel has none: said in a line, and in the way of nothing else. With a kernel that has them: tests/vm."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from tests.appliance import Appliance, CliError
from tests.control import io

pytestmark = pytest.mark.skipif(Path("/dev/ublk-control").exists(), reason="this machine's kernel has ublk")


def volume(appliance: Appliance) -> None:
    appliance.cli("group", "create", "g")
    appliance.cli("volume", "create", "g/v", "--size", "1M")


def moved_from_a_machine_with_ublk(appliance: Appliance) -> None:
    """The store as such a machine left it."""
    volume(appliance)
    appliance.stop()
    with sqlite3.connect(appliance.store / "catalogue.db") as db:
        db.execute("UPDATE exports SET ublk = 3 WHERE volume = 'v'")
    db.close()
    appliance.start()


def test_a_kernel_without_ublk_is_said_with_what_to_do(appliance: Appliance) -> None:
    volume(appliance)
    with pytest.raises(CliError) as refused:
        appliance.cli("volume", "set", "g/v", "--ublk")
    assert refused.value.code == "not-supported"
    assert refused.value.exit_code == 9
    assert "modprobe ublk_drv" in refused.value.problem["detail"]
    assert "NBD" in refused.value.problem["detail"]
    assert appliance.cli("volume", "show", "g/v")["ublk"] is None
    assert appliance.cli("status")["alerts"] == []
    # It is not one, so there is nothing to take away.
    assert appliance.cli("volume", "set", "g/v", "--no-ublk")["ublk"] is None


def test_what_is_attached_stays_attached_when_it_cannot_be_a_block_device(appliance: Appliance, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    appliance.cli("group", "create", "g")
    with pytest.raises(CliError) as refused:
        appliance.cli("attach", "g/v", str(tmp_path / "disk"), "--ublk")
    assert refused.value.code == "not-supported"
    shown = appliance.cli("volume", "show", "g/v")
    assert shown["splitter"]["kind"] == "host"
    io.write(shown["nbd_url"], 0x5A, "0", "64k")


@pytest.mark.expect_log("block device is not served")
def test_a_device_that_cannot_be_served_is_an_alert_and_the_rest_is_served(appliance: Appliance) -> None:
    moved_from_a_machine_with_ublk(appliance)
    shown = appliance.cli("volume", "show", "g/v")
    assert shown["ublk"]["device"] == "/dev/ublkb3"
    assert not shown["ublk"]["serving"]
    (alert,) = appliance.cli("status")["alerts"]
    for word in ("g/v", "/dev/ublkb3", "modprobe ublk_drv"):
        assert word in alert
    io.write(shown["nbd_url"], 0x5A, "0", "64k")
    # Whoever has it mounted is not to lose it to a host.
    appliance.cli("host", "create", "h", "--initiator", "iqn.2026-11.example:h")
    with pytest.raises(CliError) as refused:
        appliance.cli("host", "map", "h", "g/v")
    assert refused.value.code == "conflict"
    assert "--no-ublk" in refused.value.stderr
    assert appliance.cli("volume", "set", "g/v", "--no-ublk")["ublk"] is None
    assert appliance.cli("status")["alerts"] == []
    appliance.cli("host", "map", "h", "g/v")


@pytest.mark.expect_log("block device is not served")
def test_a_volume_that_is_a_block_device_can_be_deleted(appliance: Appliance) -> None:
    moved_from_a_machine_with_ublk(appliance)
    appliance.cli("volume", "delete", "g/v", "--delete-base")
    assert appliance.cli("status")["alerts"] == []


def test_a_volume_for_hosts_alone_is_no_block_device(appliance: Appliance) -> None:
    volume(appliance)
    appliance.cli("host", "create", "h", "--initiator", "iqn.2026-11.example:h")
    appliance.cli("host", "map", "h", "g/v")
    with pytest.raises(CliError) as refused:
        appliance.cli("volume", "set", "g/v", "--ublk")
    assert refused.value.code == "conflict"
    assert "unmap it" in refused.value.problem["next_step"]
    assert appliance.cli("volume", "show", "g/v")["ublk"] is None
