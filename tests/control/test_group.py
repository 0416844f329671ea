"""Groups, volumes, bookmarks and points through the CLI: what works, and how each refusal looks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.appliance import Appliance
from tests.control import io


def test_the_life_of_a_group(appliance: Appliance) -> None:
    group = appliance.cli("group", "create", "db", "--window", "24h", "--limit", "10G")
    limits = {"window_ns": 86_400_000_000_000, "limit_bytes": 10 << 30, "reserve_bytes": 0}
    assert group["policy"] == {**limits, "on_journal_failure": "stop"}
    assert group["iqn"] == "iqn.2026-11.io.playhead:db"
    appliance.cli("group", "policy", "db", "--limit", "none", "--window", "2d")
    volume = appliance.cli("volume", "create", "db/data", "--size", "64T")
    assert volume["size_bytes"] == 64 << 40
    assert volume["iscsi_url"] == f"iscsi://{appliance.ready['iscsi']}/{group['iqn']}/0"
    assert volume["nbd_url"] == f"nbd://{appliance.ready['nbd']}/db/data"
    refused = appliance.refusal("group", "delete", "db")
    assert (refused.exit_code, refused.code) == (4, "conflict")
    appliance.restart()
    assert appliance.cli("group", "show", "db")["policy"]["window_ns"] == 2 * 86_400_000_000_000
    assert appliance.cli("group", "show", "db")["policy"]["limit_bytes"] is None
    appliance.cli("volume", "delete", "db/data", "--delete-base")
    appliance.cli("group", "delete", "db")
    assert appliance.cli("group", "list") == []
    assert list((appliance.store / "groups").iterdir()) == []
    appliance.cli("group", "create", "db")


def test_luns_keep_their_numbers(appliance: Appliance) -> None:
    appliance.cli("group", "create", "db")
    for name in ("a", "b", "c"):
        appliance.cli("volume", "create", f"db/{name}", "--size", "1M")
    appliance.cli("volume", "delete", "db/a", "--delete-base")
    appliance.restart()
    assert {v["name"]: v["lun"] for v in appliance.cli("volume", "list", "db")} == {"b": 1, "c": 2}
    assert appliance.cli("volume", "create", "db/d", "--size", "1M")["lun"] == 0


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("group", "create", "Bad"), 5, "bad-name"),
        (("group", "create", "../up"), 5, "bad-name"),
        (("group", "create", "x" * 64), 5, "bad-name"),
        (("group", "create", "db"), 4, "conflict"),
        (("group", "show", "nothing"), 3, "not-found"),
        (("group", "undo", "db"), 4, None),
        (("group", "rewind", "db", "--to", "999999999999"), 4, "outside-window"),
        (("volume", "create", "nowhere/v", "--size", "1G"), 3, "not-found"),
        (("volume", "create", "db/v", "--size", "1000"), 5, "invalid"),
        (("volume", "create", "db/v", "--size", "65T"), 5, "invalid"),
        (("volume", "create", "db/v", "--size", "0"), 5, "invalid"),
        (("volume", "create", "db/v", "--size", "ten"), 5, "invalid"),
        (("volume", "create", "db/a b", "--size", "1G"), 5, "bad-name"),
        (("volume", "create", "plain", "--size", "1G"), 5, "invalid"),
        (("volume", "delete", "db/none", "--keep-base"), 3, "not-found"),
        (("volume", "adopt", "db/v", "--path", "/nowhere/at/all"), None, None),
        (("bookmark", "create", "db/head"), 5, "bad-name"),
        (("bookmark", "create", "db/12"), 5, "bad-name"),
        (("point", "show", "db", "no-such-bookmark"), 3, "not-found"),
        (("point", "show", "db", "2001-01-01T00:00:00Z"), 4, "outside-window"),
        (("point", "show", "db", "2001-01-01T00:00:00"), 5, "invalid"),
        (("point", "show", "db", "-5x"), 5, "invalid"),
        (("point", "show", "db", "-10h"), 4, "outside-window"),
        (("image", "open", "db/Up"), 5, "bad-name"),
        (("image", "close", "db/none"), 3, "not-found"),
        (("job", "cancel", "job-99"), 3, "not-found"),
        (("journal", "trim", "db", "--to", "nonsense"), 3, "not-found"),
    ],
)
def test_refusals(
    appliance_with_group: Appliance, arguments: tuple[str, ...], exit_code: int | None, code: str | None
) -> None:
    refused = appliance_with_group.refusal(*arguments)
    assert refused.problem, refused.stderr
    if exit_code is not None:
        assert refused.exit_code == exit_code, refused
    if code is not None:
        assert refused.code == code, refused
    assert refused.problem["detail"]
    assert refused.code != "internal", refused


@pytest.fixture(scope="module")
def appliance_with_group(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One service for all refusals: none of them may leave a trace."""
    running = Appliance(tmp_path_factory.mktemp("refusals") / "store")
    with running:
        running.cli("group", "create", "db")
        yield running
        assert running.cli("volume", "list", "db") == []
        assert [group["name"] for group in running.cli("group", "list")] == ["db"]
    assert not running.complaints()


def test_refusals_are_one_line_for_people(appliance_with_group: Appliance) -> None:
    done = appliance_with_group.run("volume", "show", "db/none")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("playhead: ")
    assert done.stderr.count("\n") == 1
    assert appliance_with_group.run("volume", "create", "db/v").returncode == 2
    assert appliance_with_group.run("group", "list", env={"PLAYHEAD_API": "127.0.0.1:1"}).returncode == 6


def test_an_image_file_is_adopted_in_place(appliance: Appliance, tmp_path: Path) -> None:
    image = tmp_path / "existing.raw"
    with image.open("wb") as file:
        file.write(b"\x5a" * (1 << 20))
        file.truncate(8 << 20)
    appliance.cli("group", "create", "db")
    volume = appliance.cli("volume", "adopt", "db/old", "--path", str(image))
    assert volume["adopted"] is True
    assert volume["base"] == [str(image)]
    assert volume["size_bytes"] == 8 << 20
    io.check(volume["iscsi_url"], 0x5A)
    io.write(volume["nbd_url"], 0x66, "1M", "64k")
    appliance.cli("group", "settle", "db")
    appliance.cli("volume", "delete", "db/old", "--keep-base")
    io.check(str(image), 0x5A, read_only=True)
    io.check(str(image), 0x66, "1M", "64k", read_only=True)


def test_an_image_of_a_wrong_size_is_not_adopted(appliance: Appliance, tmp_path: Path) -> None:
    appliance.cli("group", "create", "db")
    for size in (0, 1000):
        image = tmp_path / f"odd{size}.raw"
        image.write_bytes(b"x" * size)
        refused = appliance.refusal("volume", "adopt", "db/odd", "--path", str(image))
        assert str(image) in refused.problem["detail"], refused
        assert image.read_bytes() == b"x" * size
    assert appliance.cli("volume", "list", "db") == []


@pytest.mark.parametrize("fault", ["missing", "shorter"])
@pytest.mark.expect_log("group cannot be served")
def test_a_group_without_its_base_does_not_keep_the_others_back(appliance: Appliance, fault: str) -> None:
    for name in ("sick", "well"):
        appliance.cli("group", "create", name)
        io.write(appliance.cli("volume", "create", f"{name}/v", "--size", "4M")["nbd_url"], 0x11)
    base = Path(appliance.cli("volume", "show", "sick/v")["base"][0])
    url = appliance.nbd_url("well/v")
    appliance.stop()
    aside = base.with_suffix(".aside")
    shutil.copy(base, aside)
    if fault == "missing":
        base.unlink()
    else:
        os.truncate(base, 1 << 20)
    appliance.start()
    io.check(url, 0x11)
    groups = {group["name"]: group for group in appliance.cli("group", "list")}
    assert groups["well"]["state"] == "serving"
    assert groups["sick"]["state"] == "failed"
    assert str(base) in groups["sick"]["reason"]
    assert groups["sick"]["next_step"]
    assert any("sick" in alert for alert in appliance.cli("status")["alerts"])
    refused = appliance.refusal("volume", "list", "sick")
    assert (refused.exit_code, refused.code) == (9, "failed")
    # Put right, it comes back without a restart, with all that was written.
    shutil.move(aside, base)
    assert appliance.cli("group", "retry", "sick")["state"] == "serving"
    io.check(appliance.nbd_url("sick/v"), 0x11)


@pytest.mark.expect_log("group cannot be served")
def test_a_journal_of_a_newer_format_is_refused_and_left_alone(appliance: Appliance) -> None:
    appliance.cli("group", "create", "db")
    appliance.stop()
    superblock = appliance.store / "groups" / "db" / "superblock"
    content = bytearray(superblock.read_bytes())
    magic, slots = bytes(content[:8]), 0
    at = 0
    while at >= 0:
        # docs/formats.md: format at 8, length of the text at 12, CRC32C of the first 28 bytes and the text at 28.
        length = int.from_bytes(content[at + 12 : at + 16], "little")
        text = bytes(content[at + 32 : at + 32 + length])
        assert int.from_bytes(content[at + 28 : at + 32], "little") == crc32c(bytes(content[at : at + 28]) + text)
        content[at + 8 : at + 12] = (4711).to_bytes(4, "little")
        content[at + 28 : at + 32] = crc32c(bytes(content[at : at + 28]) + text).to_bytes(4, "little")
        slots += 1
        at = content.find(magic, at + 8)
    assert slots
    superblock.write_bytes(content)
    appliance.start()
    (group,) = appliance.cli("group", "list")
    assert group["state"] == "failed"
    assert "4711" in group["reason"]
    assert "newer" in group["reason"]
    assert superblock.read_bytes() == content


def crc32c(content: bytes) -> int:
    """Castagnoli's CRC, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_points_in_all_their_spellings(appliance: Appliance) -> None:
    appliance.cli("group", "create", "db")
    volume = appliance.cli("volume", "create", "db/v", "--size", "1M")
    io.write(volume["nbd_url"], 1, "0", "64k")
    bookmark = appliance.cli("bookmark", "create", "db/here", "--application")
    assert bookmark["kind"] == "application"
    io.write(volume["nbd_url"], 2, "0", "64k")
    head = appliance.cli("group", "head", "db")
    assert appliance.cli("point", "show", "db") == head
    assert appliance.cli("point", "show", "db", "head") == head
    assert appliance.cli("point", "show", "db", str(head["lsn"]))["lsn"] == head["lsn"]
    assert appliance.cli("point", "show", "db", "here")["lsn"] == bookmark["lsn"]
    assert bookmark["lsn"] < head["lsn"]
    edge = appliance.cli("group", "window", "db")["edge"]
    assert appliance.cli("point", "show", "db", "edge") == edge
    # The last point not after a time is one of that time or before.
    assert appliance.cli("point", "show", "db", "--at", head["time"])["lsn"] == head["lsn"]
    assert appliance.cli("point", "show", "db", "-1ms")["lsn"] == head["lsn"]


def test_the_journal_can_be_read_with_and_without_a_service(appliance: Appliance) -> None:
    appliance.cli("group", "create", "db")
    volume = appliance.cli("volume", "create", "db/v", "--size", "1M")
    io.qemu_io(volume["nbd_url"], "write -P 1 0 4k", "write -z 4k 4k", "discard 8k 4k", "flush")
    appliance.cli("bookmark", "create", "db/mark")
    online = appliance.run("journal", "dump", "db", "-o", "json").stdout
    assert '"WRITE"' in online
    assert '"BOOKMARK"' in online
    pages = appliance.cli("journal", "dump", "db", "--limit", "1")
    assert pages["lsn"] == appliance.cli("group", "window", "db")["edge"]["lsn"]
    appliance.stop()
    offline = appliance.run("journal", "dump", "db", "--store", str(appliance.store), "-o", "json").stdout
    assert offline.splitlines()[: online.count("\n")] == online.splitlines()
    assert appliance.cli("journal", "verify", "db", "--store", str(appliance.store))["problems"] == []
    segment = min((appliance.store / "groups" / "db" / "log").iterdir())
    with segment.open("r+b") as file:
        # Well inside the records just written.
        file.seek(300)
        file.write(b"\xff" * 64)
    verify = appliance.run("journal", "verify", "db", "--store", str(appliance.store))
    assert verify.returncode in (9, 12), verify


def test_trimming_gives_up_the_past_but_never_an_image(appliance: Appliance) -> None:
    appliance.cli("group", "create", "db")
    volume = appliance.cli("volume", "create", "db/v", "--size", "1M")
    io.write(volume["nbd_url"], 7)
    image = appliance.cli("image", "open", "db/held")
    io.write(volume["nbd_url"], 8)
    edge = appliance.cli("journal", "trim", "db", "--to", "head")
    assert edge["lsn"] <= image["point"]["lsn"]
    io.check(image["nbd_url"], 7, read_only=True)
    io.check(volume["nbd_url"], 8)


def is_root_on_linux() -> bool:
    return os.geteuid() == 0 and Path("/proc/mounts").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A file system with room for a journal and little more."""
    mount = tmp_path / "small"
    mount.mkdir()
    if not is_root_on_linux():
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_an_error_of_its_own_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    config = tmp_path / "playhead.toml"
    config.write_text('segment_bytes = "1M"\n')
    appliance = Appliance(small_disk / "store", "--config", str(config), log=tmp_path / "log")
    appliance.expect(".")
    with appliance:
        appliance.cli("group", "create", "db")
        volume = appliance.cli("volume", "create", "db/v", "--size", "256M")
        written = 0
        with pytest.raises(io.IoFailedError) as full:
            for megabyte in range(64):
                io.write(volume["nbd_url"], megabyte + 1, f"{megabyte}M", "1M")
                written += 1
        assert "No space left" in str(full.value)
        assert written > 0
        for megabyte in range(written):
            io.check(volume["iscsi_url"], megabyte + 1, f"{megabyte}M", "1M")
        status = appliance.cli("status")
        assert status["groups"][0]["state"] == "serving"
        assert status["alerts"], "a full disk raises an alert"
        refused = appliance.refusal("group", "create", "another")
        assert (refused.exit_code, refused.code) == (8, "no-space"), refused
        assert [group["name"] for group in appliance.cli("group", "list")] == ["db"]
        appliance.kill()
        appliance.start()
        (group,) = appliance.cli("group", "list")
        if group["state"] == "failed":
            # The crash came while what leaves the window was moving into the base, which cannot go on without room.
            assert "No space" in group["reason"] or "full" in group["reason"]
        subprocess.run(["mount", "-o", "remount,size=128m", str(small_disk)], check=True)
        if group["state"] == "failed":
            assert appliance.cli("group", "retry", "db")["state"] == "serving"
        for megabyte in range(written):
            io.check(volume["nbd_url"], megabyte + 1, f"{megabyte}M", "1M")
        io.write(volume["nbd_url"], 0x7E, "200M", "1M")
