"""Writable images of a copy, through the front door: written to by hosts while production goes on, or is gone; what becomes of them when the
service, the copy's disk or production ends."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.appliance import Appliance, CliError
from tests.control import io
from tests.crash.nbd_client import NbdClient

from playhead import _native

from .near import level, place, url, wait_for, wait_for_pattern


def scratches(tmp_path: Path) -> list[str]:
    root = place(tmp_path) / "scratch"
    return sorted(entry.name for entry in root.iterdir()) if root.exists() else []


def disk_of(image: dict[str, Any], volume: str) -> dict[str, Any]:
    return next(disk for disk in image["volumes"] if disk["name"] == volume)


def mapped(nbd_url: str) -> list[tuple[int, int, bool]]:
    """Stretches as an NBD client sees them: from, bytes, whether they are data."""
    host, port, export = nbd_place(nbd_url)
    options = f"driver=nbd,server.type=inet,server.host={host},server.port={port},export={export}"
    done = subprocess.run(
        ["qemu-img", "map", "--output=json", "--image-opts", options],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return [(e["start"], e["length"], e["data"]) for e in json.loads(done.stdout)]


def nbd_place(nbd_url: str) -> tuple[str, str, str]:
    address, export = nbd_url.removeprefix("nbd://").split("/", 1)
    host, port = address.rsplit(":", 1)
    return host, port, export


def test_hosts_write_to_an_image_of_a_copy_and_to_nothing_else(group: Appliance, tmp_path: Path) -> None:
    data = url(group)
    io.write(data, 0x22, "4M", "1M")
    group.cli("bookmark", "create", "db/before")
    io.write(data, 0x33, "4M", "1M")
    level(group)
    image = group.cli("image", "open", "db/try", "--at", "before", "--copy", "near", "--writable")
    assert (image["writable"], image["copy_name"], image["alert"]) == (True, "near", None)
    assert image["point"]["lsn"] == group.cli("point", "show", "db", "before")["lsn"]
    nbd, iscsi = image["nbd_url"], image["iscsi_url"]
    below = group.cli("image", "open", "db/look", "--at", "before", "--copy", "near")
    io.check(nbd, 0x22, "4M", "1M")
    io.write(nbd, 0x44, "4M", "64k")
    io.check(iscsi, 0x44, "4M", "64k")
    io.write(iscsi, 0x55, "5M", "64k")
    io.qemu_io(iscsi, "discard 4M 512k", "flush")
    io.check(nbd, 0, "4M", "512k")
    io.check(nbd, 0x22, "4608k", "512k")
    io.write(disk_of(image, "wal")["nbd_url"], 0x66)
    holes = [(start, start + length) for start, length, data in mapped(nbd) if not data]
    assert any(start <= 4 << 20 and end >= (4 << 20) + (512 << 10) for start, end in holes), holes

    def check() -> None:
        wait_for_pattern(nbd, 0, "4M", "512k")
        io.check(nbd, 0x55, "5M", "64k")
        io.check(disk_of(image, "wal")["nbd_url"], 0x66)
        wait_for_pattern(below["nbd_url"], 0x22, "4M", "1M", read_only=True)
        io.check(below["nbd_url"], 0, "5M", "64k", read_only=True)
        io.check(data, 0x33, "4M", "1M")

    check()
    assert scratches(tmp_path) == ["try"]
    shown = group.cli("image", "show", "db/try")
    assert shown["scratch_bytes"] > 0
    assert group.cli("image", "show", "db/look")["scratch_bytes"] is None
    # Production goes on, and the copy after it; what was written to the image is in neither.
    io.write(data, 0x77, "8M", "1M")
    level(group)
    group.cli("copy", "verify", "db/near")
    # The image outlives a stop and, with all that was acknowledged, a death of the service.
    group.restart()
    check()
    io.qemu_io(nbd, "write -P 136 6M 64k")
    group.kill()
    group.start()
    check()
    io.check(nbd, 0x88, "6M", "64k")
    level(group)
    group.cli("copy", "verify", "db/near")
    assert [(i["name"], i["writable"]) for i in group.cli("image", "list", "db")] == [("look", False), ("try", True)]
    assert _native.verify(str(place(tmp_path)))["problems"] == []
    group.cli("image", "close", "db/try")
    assert scratches(tmp_path) == []
    with pytest.raises(io.IoFailedError):
        io.check(nbd, 0x88, "6M", "64k")
    # The name is free, and nothing is inherited.
    group.cli("image", "open", "db/try", "--at", "before", "--copy", "near", "--writable")
    io.check(nbd, 0x22, "4M", "1M")


def test_it_goes_and_comes_with_the_copys_disk(group: Appliance, tmp_path: Path) -> None:
    level(group)
    image = group.cli("image", "open", "db/try", "--copy", "near", "--writable")
    io.write(image["nbd_url"], 0x21, "1M", "1M")
    here, away = place(tmp_path), tmp_path / "away"
    here.rename(away)
    wait_for(group, lambda c: c["state"] == "unreachable")
    io.write(url(group), 0x66)
    with pytest.raises(CliError, match="no open image"):
        group.cli("image", "close", "db/try")
    with pytest.raises(CliError, match="has an open image try"):
        group.cli("image", "open", "db/try")
    away.rename(here)
    level(group)
    wait_for_pattern(image["nbd_url"], 0x21, "1M", "1M")
    io.check(image["nbd_url"], 0x11)
    io.write(image["nbd_url"], 0x22)
    group.cli("copy", "verify", "db/near")
    group.cli("image", "close", "db/try")


@pytest.mark.expect_log("group cannot be served")
def test_it_goes_on_when_the_copy_takes_over(group: Appliance, tmp_path: Path) -> None:
    data = url(group)
    io.write(data, 0x31, "2M", "1M")
    level(group)
    group.kill()
    shutil.rmtree(group.store / "groups" / "db")
    group.start()
    wait_for(group, lambda c: c["consistent"])
    # Production is gone; the copy is tried first.
    image = group.cli("image", "open", "db/try", "--copy", "near", "--writable")
    io.check(image["nbd_url"], 0x31, "2M", "1M")
    io.write(image["nbd_url"], 0x32, "2M", "512k")
    group.cli("copy", "promote", "db/near")
    io.check(data, 0x31, "2M", "1M")
    after = group.cli("image", "show", "db/try")
    for same in ("nbd_url", "iscsi_url", "point", "created"):
        assert after[same] == image[same], same
    assert disk_of(after, "data")["uuid"] == disk_of(image, "data")["uuid"]
    assert (after["copy_name"], after["writable"]) == (None, True)
    io.check(after["iscsi_url"], 0x32, "2M", "512k")
    io.write(after["iscsi_url"], 0x33, "4M", "64k")
    io.write(data, 0x34, "4M", "64k")
    with pytest.raises(CliError, match="images"):
        group.cli("group", "settle", "db")
    group.restart()
    io.check(after["nbd_url"], 0x33, "4M", "64k")
    io.check(after["nbd_url"], 0x32, "2M", "512k")
    io.check(data, 0x34, "4M", "64k")
    group.cli("image", "close", "db/try")
    assert scratches(tmp_path) == []
    group.cli("group", "settle", "db")


def test_it_goes_on_when_the_copy_takes_over_while_production_serves(group: Appliance) -> None:
    level(group)
    image = group.cli("image", "open", "db/try", "--copy", "near", "--writable")
    io.write(image["nbd_url"], 0x32)
    io.write(url(group), 0x31, "0", "4M")
    # A host that stays with the image holds nothing up.
    host, port, export = nbd_place(image["nbd_url"])
    client = NbdClient(host, int(port), export)
    group.cli("copy", "promote", "db/near", "--while-serving")
    io.check(url(group), 0x31, "0", "4M")
    io.check(image["nbd_url"], 0x32)
    io.write(image["nbd_url"], 0x33)
    client.close()


def test_what_was_written_is_not_lost_with_the_copy_by_accident(group: Appliance, tmp_path: Path) -> None:
    level(group)
    image = group.cli("image", "open", "db/try", "--copy", "near", "--writable")
    io.write(image["nbd_url"], 0x41)
    with pytest.raises(CliError, match="image close db/try"):
        group.cli("copy", "remove", "db/near", "--delete-data")
    group.cli("copy", "remove", "db/near")
    assert group.cli("image", "list", "db") == []
    with pytest.raises(io.IoFailedError):
        io.check(image["nbd_url"], 0x41)
    # Its directory holds it all, and whoever adds it again has the image, unless the name has been taken.
    taken = group.cli("image", "open", "db/try", "--writable")
    group.cli("copy", "add", "db/near", "--directory", str(place(tmp_path)))
    level(group)
    assert "image close db/try" in wait_for(group, lambda c: c["alert"] is not None)["alert"]
    assert [i["copy_name"] for i in group.cli("image", "list", "db")] == [None]
    io.check(taken["nbd_url"], 0x11)
    group.cli("image", "close", "db/try")
    wait_for(group, lambda c: c["alert"] is None)
    wait_for_pattern(image["nbd_url"], 0x41)
    assert group.cli("image", "show", "db/try")["copy_name"] == "near"
    group.restart()
    wait_for_pattern(image["nbd_url"], 0x41)
    group.cli("image", "close", "db/try")
    group.cli("copy", "remove", "db/near", "--delete-data")
    assert not place(tmp_path).exists()


def test_what_a_crash_leaves_of_an_opening_is_nothing(group: Appliance, tmp_path: Path) -> None:
    level(group)
    group.stop()
    # Between the scratch and the copy's superblock; and between the catalogue and the copy.
    (place(tmp_path) / "scratch" / "half" / "log").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(group.store / "catalogue.db")) as catalogue, catalogue:
        catalogue.execute("INSERT INTO copy_images VALUES ('db', 'near', 'half')")
    group.start()
    level(group)
    assert group.cli("image", "list", "db") == []
    assert scratches(tmp_path) == []
    wait_for(group, lambda c: c["images"] == [])
    image = group.cli("image", "open", "db/half", "--copy", "near", "--writable")
    io.check(image["nbd_url"], 0x11)


@pytest.mark.expect_log("what was written to image try cannot be read")
def test_a_scratch_that_is_lost_is_said_and_costs_its_image_alone(group: Appliance, tmp_path: Path) -> None:
    level(group)
    image = group.cli("image", "open", "db/try", "--copy", "near", "--writable")
    other = group.cli("image", "open", "db/other", "--copy", "near", "--writable")
    io.write(other["nbd_url"], 0x42)
    group.stop()
    shutil.rmtree(place(tmp_path) / "scratch" / "try")
    group.start()
    level(group)
    wait_for_pattern(other["nbd_url"], 0x42)
    shown = group.cli("image", "show", "db/try")
    assert "close the image" in shown["alert"]
    assert shown["volumes"] == []
    assert any("image db/try" in alert for alert in group.cli("status")["alerts"])
    with pytest.raises(io.IoFailedError):
        io.check(image["nbd_url"], 0x11)
    group.cli("image", "close", "db/try")
    assert group.cli("status")["alerts"] == []


def test_an_image_that_fills_the_copys_disk_is_refused_more_and_the_copy_goes_on(tmp_path: Path) -> None:
    small, config = tmp_path / "small", tmp_path / "playhead.toml"
    small.mkdir()
    config.write_text('segment_bytes = "1M"\n')
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(small)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
    appliance = Appliance(tmp_path / "store", "--config", str(config))
    appliance.expect("cannot be made ahead|is told: no space left")
    try:
        with appliance:
            appliance.cli("group", "create", "db")
            appliance.cli("volume", "create", "db/data", "--size", "64M")
            io.write(url(appliance), 0x11)
            appliance.cli("copy", "add", "db/near", "--directory", str(small / "db"))
            level(appliance)
            image = appliance.cli("image", "open", "db/try", "--copy", "near", "--writable")
            with pytest.raises(io.IoFailedError, match="No space left"):
                io.write(image["nbd_url"], 0x12, "0", "60M")
            with pytest.raises(io.IoFailedError, match=r"No space left|SPACE"):
                io.write(image["iscsi_url"], 0x12, "0", "60M")
            assert "nearly full" in appliance.cli("copy", "show", "db/near")["alert"]
            # What is left is the copy's.
            assert shutil.disk_usage(small).free >= 2 << 20
            io.write(url(appliance), 0x13, "2M", "64k")
            level(appliance)
            appliance.cli("copy", "verify", "db/near")
            appliance.cli("image", "close", "db/try")
            assert shutil.disk_usage(small).free >= 20 << 20
        assert not appliance.complaints()
    finally:
        subprocess.run(["umount", str(small)], check=True)
