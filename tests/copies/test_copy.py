"""Copies on another disk through the front door: added while hosts write, left behind, lost and found, verified, promoted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.appliance import Appliance, CliError
from tests.control import io

from .near import level, place, url, wait_for, wait_for_pattern


def test_a_copy_follows_and_its_past_is_productions(group: Appliance) -> None:
    level(group)
    data = url(group)
    io.write(data, 0x22)
    group.cli("bookmark", "create", "db/before")
    io.write(data, 0x33)
    found = level(group)
    assert found["consistent"]
    assert found["lag_s"] == 0
    image = group.cli("image", "open", "db/old", "--at", "before", "--copy", "near")
    assert image["copy_name"] == "near"
    assert image["point"]["lsn"] == group.cli("point", "show", "db", "before")["lsn"]
    io.check(image["nbd_url"], 0x22, read_only=True)
    with pytest.raises(CliError, match="choose another name"):
        group.cli("image", "open", "db/old")
    # Both the copy and its image are there again after the service was killed.
    group.kill()
    group.start()
    level(group)
    wait_for_pattern(image["nbd_url"], 0x22, read_only=True)
    assert group.cli("copy", "show", "db/near")["images"] == ["old"]
    assert [i["name"] for i in group.cli("image", "list", "db")] == ["old"]
    group.cli("image", "close", "db/old")
    assert group.cli("copy", "show", "db/near")["images"] == []


def test_a_paused_copy_is_brought_up_to_date_by_what_changed(group: Appliance) -> None:
    level(group)
    data = url(group)
    group.cli("copy", "pause", "db/near")
    wait_for(group, lambda c: c["state"] == "paused")
    io.write(data, 0x44, "8M", "2M")
    found = group.cli("copy", "show", "db/near")
    assert found["lag_bytes"] >= 2 << 20
    assert found["lag_s"] > 0
    assert any("db/near" in alert and "paused" in alert for alert in group.cli("status")["alerts"])
    # By the log alone.
    group.cli("copy", "resume", "db/near")
    level(group)
    # And when the log does not reach back: the window has moved on meanwhile.
    group.cli("copy", "pause", "db/near")
    wait_for(group, lambda c: c["state"] == "paused")
    io.write(data, 0x55, "16M", "1M")
    group.cli("group", "settle", "db")
    assert group.cli("group", "window", "db")["edge"]["lsn"] > found["durable_lsn"]
    group.cli("copy", "resume", "db/near")
    level(group)
    group.cli("copy", "verify", "db/near")
    io.check(group.cli("image", "open", "db/now", "--copy", "near")["nbd_url"], 0x55, "16M", "1M", read_only=True)
    group.cli("image", "close", "db/now")


def test_a_disk_that_goes_away_and_comes_back(group: Appliance, tmp_path: Path) -> None:
    level(group)
    image = group.cli("image", "open", "db/old", "--copy", "near")
    io.check(image["nbd_url"], 0x11, read_only=True)
    here, away = place(tmp_path), tmp_path / "away"
    here.rename(away)
    found = wait_for(group, lambda c: c["state"] == "unreachable")
    assert "bring" in found["reason"]
    assert any("unreachable" in alert for alert in group.cli("status")["alerts"])
    io.write(url(group), 0x66)
    assert not here.exists(), "nothing is begun anew in its place"
    away.rename(here)
    level(group)
    wait_for_pattern(image["nbd_url"], 0x11, read_only=True)
    group.cli("image", "close", "db/old")
    group.cli("copy", "verify", "db/near")


def test_one_flipped_byte_is_found(group: Appliance, tmp_path: Path) -> None:
    level(group)
    # What is in the journal has its checksums; what has left it is in the bases.
    group.cli("group", "settle", "db")
    group.cli("copy", "pause", "db/near")
    wait_for(group, lambda c: c["state"] == "paused")
    io.write(url(group), 0x21, "1M", "64k")
    group.cli("group", "settle", "db")
    group.cli("copy", "resume", "db/near")
    level(group)
    group.cli("copy", "verify", "db/near")
    base = next((place(tmp_path) / "base").glob("*-data.raw"))
    with base.open("r+b") as file:
        file.seek(12345)
        was = file.read(1)
        file.seek(12345)
        file.write(bytes([was[0] ^ 1]))
    with pytest.raises(CliError) as refused:
        group.cli("copy", "verify", "db/near")
    assert refused.value.exit_code == 12
    job = group.cli("job", "list")[-1]
    assert job["result"]["differing_blocks"] == 8
    assert job["result"]["differences"] == [{"volume": "data", "lba": 12345 // 4096 * 8, "count": 8}]


@pytest.mark.expect_log("group cannot be served")
def test_a_copy_takes_over_when_productions_disk_is_gone(group: Appliance, tmp_path: Path) -> None:
    data = url(group)
    io.write(data, 0x77)
    group.cli("bookmark", "create", "db/good")
    io.write(data, 0x78)
    level(group)
    before = group.cli("volume", "show", "db/data")
    with pytest.raises(CliError, match="in service"):
        group.cli("copy", "promote", "db/near")
    group.kill()
    shutil.rmtree(group.store / "groups" / "db")
    group.start()
    assert group.cli("group", "show", "db")["state"] == "failed"
    wait_for(group, lambda c: c["consistent"])
    # Its past can be looked at before it takes over.
    image = group.cli("image", "open", "db/look", "--at", "good", "--copy", "near")
    io.check(image["nbd_url"], 0x77, read_only=True)
    group.cli("image", "close", "db/look")
    group.cli("copy", "promote", "db/near")
    after = group.cli("volume", "show", "db/data")
    for same in ("uuid", "iqn", "lun", "nbd_url", "iscsi_url", "size_bytes"):
        assert after[same] == before[same], same
    io.check(after["nbd_url"], 0x78, read_only=True)
    io.write(after["nbd_url"], 0x79)
    group.cli("group", "rewind", "db", "--to", "good")
    io.check(after["nbd_url"], 0x77, read_only=True)
    assert group.cli("copy", "list", "db") == []
    # It stays production, and can have copies itself.
    group.stop()
    group.start()
    io.check(after["nbd_url"], 0x77, read_only=True)
    group.cli("copy", "add", "db/near", "--directory", str(tmp_path / "third"))
    level(group)
    group.cli("copy", "verify", "db/near")


def test_what_is_refused(group: Appliance, tmp_path: Path) -> None:
    level(group)
    for arguments, words in [
        (("copy", "add", "db/near", "--directory", str(tmp_path / "x")), "has a copy near"),
        (("copy", "add", "db/two", "--directory", str(place(tmp_path))), "is the directory of copy"),
        (("copy", "add", "db/two", "--directory", str(group.store / "groups" / "db")), "own place"),
        (("copy", "add", "db/two", "--directory", str(tmp_path)), "own place|not empty"),
        (("copy", "add", "db/Two", "--directory", str(tmp_path / "x")), "not allowed"),
        (("copy", "show", "db/two"), "no copy"),
        (("copy", "promote", "db/near"), "in service"),
    ]:
        with pytest.raises(CliError, match=words):
            group.cli(*arguments)
    for volume in ("data", "wal"):
        group.cli("volume", "delete", f"db/{volume}", "--delete-base")
    with pytest.raises(CliError, match="copy remove"):
        group.cli("group", "delete", "db")
    group.cli("copy", "remove", "db/near", "--delete-data")
    assert not place(tmp_path).exists()
    group.cli("group", "delete", "db")


def test_a_promotion_while_production_serves_loses_nothing(group: Appliance) -> None:
    level(group)
    io.write(url(group), 0x31, "0", "4M")
    with pytest.raises(CliError, match="in service"):
        group.cli("copy", "promote", "db/near", "--allow-inconsistent")
    group.cli("copy", "promote", "db/near", "--while-serving")
    io.check(url(group), 0x31, "0", "4M", read_only=True)
