"""The product's promise through the front door: write over iSCSI and NBD, then mount and rewind to the past."""

from __future__ import annotations

import pytest
from tests.appliance import Appliance
from tests.control import io
from tests.control.io import IoFailedError


@pytest.fixture(params=["iscsi_url", "nbd_url"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def group(appliance: Appliance) -> Appliance:
    """A group `db` with volumes `data` and `wal`."""
    appliance.cli("group", "create", "db")
    appliance.cli("volume", "create", "db/data", "--size", "64M")
    appliance.cli("volume", "create", "db/wal", "--size", "16M")
    return appliance


@pytest.mark.expect_log("login refused with status 0x0203")  # the closed image, asked for once more
def test_an_image_shows_the_moment_and_the_head_goes_on(group: Appliance, protocol: str) -> None:
    data = group.cli("volume", "show", "db/data")[protocol]
    io.write(data, 0x11)
    group.cli("bookmark", "create", "db/before")
    io.write(data, 0x22)
    image = group.cli("image", "open", "db/old", "--at", "before")
    assert image["point"]["lsn"] == group.cli("point", "show", "db", "before")["lsn"]
    assert [disk["name"] for disk in image["volumes"]] == ["data", "wal"]
    assert image[protocol] == image["volumes"][0][protocol]
    io.check(image[protocol], 0x11, read_only=True)
    io.write(data, 0x33)
    io.check(image[protocol], 0x11, read_only=True)
    io.check(data, 0x33)
    with pytest.raises(IoFailedError):
        io.write(image[protocol], 0x44)
    group.cli("image", "close", "db/old")
    with pytest.raises(IoFailedError):
        io.check(image[protocol], 0x11, read_only=True)


def test_a_writable_image_is_a_branch(group: Appliance, protocol: str) -> None:
    data = group.cli("volume", "show", "db/data")[protocol]
    io.write(data, 0x11)
    lsn = str(group.cli("group", "head", "db")["lsn"])
    io.write(data, 0x22)
    branch = group.cli("image", "open", "db/branch", "--at", lsn, "--writable")[protocol]
    io.check(branch, 0x11)
    io.write(branch, 0x55, "512k", "64k")
    io.check(branch, 0x55, "512k", "64k")
    io.check(branch, 0x11, "0", "512k")
    io.check(data, 0x22)
    # History is as it was: the same point, opened again, knows nothing of the branch.
    again = group.cli("image", "open", "db/again", "--at", lsn)[protocol]
    io.check(again, 0x11, read_only=True)


def test_rewind_undo_and_both_keep_the_volumes(group: Appliance, protocol: str) -> None:
    data = group.cli("volume", "show", "db/data")[protocol]
    wal = group.cli("volume", "show", "db/wal")[protocol]
    io.write(data, 0x11)
    io.write(wal, 0x12)
    group.cli("bookmark", "create", "db/good")
    io.write(data, 0x66)
    io.write(wal, 0x67)
    rewind = group.cli("group", "rewind", "db", "--to", "good")
    assert rewind["to"]["lsn"] == group.cli("point", "show", "db", "good")["lsn"]
    io.check(data, 0x11)
    io.check(wal, 0x12)
    io.write(data, 0x77, "2M", "64k")
    group.cli("group", "undo", "db")
    io.check(data, 0x66)
    io.check(wal, 0x67)
    io.check(data, 0, "2M", "64k")
    assert len(group.cli("group", "rewinds", "db")) == 2


def test_both_protocols_show_the_same_volume(group: Appliance) -> None:
    volume = group.cli("volume", "show", "db/data")
    io.write(volume["iscsi_url"], 0x5A, "1M", "1M")
    io.check(volume["nbd_url"], 0x5A, "1M", "1M")
    io.write(volume["nbd_url"], 0xA5, "1M", "4k")
    io.check(volume["iscsi_url"], 0xA5, "1M", "4k")


def test_settling_leaves_plain_files_that_are_the_data(group: Appliance) -> None:
    volume = group.cli("volume", "show", "db/data")
    io.write(volume["nbd_url"], 0x42, "3M", "1M")
    job = group.cli("group", "settle", "db")
    assert job["state"] == "done"
    (base,) = volume["base"]
    io.check(base, 0x42, "3M", "1M", read_only=True)
    io.check(base, 0, "0", "3M", read_only=True)
    io.check(volume["nbd_url"], 0x42, "3M", "1M")


def test_settling_with_an_open_image_is_refused(group: Appliance) -> None:
    group.cli("image", "open", "db/held")
    refused = group.refusal("group", "settle", "db")
    assert refused.exit_code == 4
    assert "held" in refused.problem["detail"]


def test_a_restart_keeps_everything(group: Appliance) -> None:
    volume = group.cli("volume", "show", "db/data")
    io.write(volume["nbd_url"], 0x11)
    group.cli("bookmark", "create", "db/first", "--application")
    io.write(volume["nbd_url"], 0x22)
    group.cli("image", "open", "db/old", "--at", "first", "--writable")
    image = group.disk("db/old/data")
    io.write(image["iscsi_url"], 0x33, "1M", "64k")
    before = [group.cli(*what) for what in (("volume", "list"), ("image", "list"), ("bookmark", "list", "db"))]
    for crash in (False, True):
        if crash:
            group.kill()
        group.restart()
        assert [
            group.cli(*what) for what in (("volume", "list"), ("image", "list"), ("bookmark", "list", "db"))
        ] == before
        io.check(volume["nbd_url"], 0x22)
        io.check(image["nbd_url"], 0x11)
        io.check(image["iscsi_url"], 0x33, "1M", "64k")
    verdict = group.cli("journal", "verify", "db")
    assert verdict["problems"] == []
    assert verdict["records"] > 0
