"""The host-based splitter through the real service: a file is attached with what it holds, is used over NBD and iSCSI, and is whole when it
is detached; whatever happens, file and head are equal in the end.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from tests.appliance import Appliance, wait_until
from tests.blockdev import itself, loop_device
from tests.control import io
from tests.crash.load import BLOCK_BYTES, ZEROS, Memory, Writer, block_bytes, whole_disk

BLOCKS = 16_384


def address(url: str) -> tuple[str, int, str]:
    """Host, port and export name of an nbd:// URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port, unquote(parts.path[1:])


def splitter(appliance: Appliance, path: str = "g/v") -> dict[str, Any]:
    found: dict[str, Any] = appliance.cli("volume", "show", path)["splitter"]
    return found


def wait_for(appliance: Appliance, state: str, path: str = "g/v") -> None:
    wait_until(lambda: splitter(appliance, path)["state"] == state, f"{path} is {state}")


def head_image(appliance: Appliance, name: str) -> bytes:
    """What the group's head shows of the volume; the image is closed again."""
    image = appliance.cli("image", "open", f"g/{name}", "--at", "head")
    found = whole_disk(address(image["nbd_url"]))
    appliance.cli("image", "close", f"g/{name}")
    return found


def attach(appliance: Appliance, file: Path, *options: str) -> dict[str, Any]:
    appliance.cli("group", "create", "g")
    found: dict[str, Any] = appliance.cli("attach", "g/v", str(file), *options)
    return found


@pytest.mark.expect_log("NBD client")
def test_a_file_is_attached_in_use_and_whole_when_it_is_detached(appliance: Appliance, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    before = random.Random(1).randbytes(BLOCKS * BLOCK_BYTES // 2)
    file.write_bytes(before)
    os.truncate(file, BLOCKS * BLOCK_BYTES)
    volume = attach(appliance, file)
    assert volume["splitter"]["kind"] == "host"
    assert volume["splitter"]["production"] == str(file)
    # While it is being synchronised for the first time.
    memory = Memory([ZEROS] * BLOCKS)
    half = BLOCKS // 2
    writer = Writer(address(volume["nbd_url"]), memory, half, half, seed=2, stamps=range(1, 1_000_000))
    writer.start()
    wait_for(appliance, "synchronised")
    begun = appliance.cli("group", "head", "g")["lsn"]
    time.sleep(0.2)
    writer.stop.set()
    writer.join(60)
    assert writer.failure is None
    assert writer.acknowledged > 0
    io.write(volume["iscsi_url"], 0x5A, "1M", "64k")
    io.check(volume["nbd_url"], 0x5A, "1M", "64k")
    now = file.read_bytes()
    assert head_image(appliance, "head") == now
    assert not memory.check(half, now[half * BLOCK_BYTES :])
    assert now[: 1 << 20] == before[: 1 << 20]
    # A point of the first synchronisation is none to restore; the error names what is.
    dumped = appliance.run("journal", "dump", "g", "--limit", "1000000", "-o", "json").stdout.splitlines()
    spans = [r for r in map(json.loads, dumped) if r["opcode"].startswith("RESYNC")]
    assert [r["opcode"] for r in spans] == ["RESYNC_BEGIN", "RESYNC_END"]
    inside = spans[0]["lsn"] + 64
    refused = appliance.refusal("image", "open", "g/inside", "--at", str(inside))
    assert refused.code == "inconsistent", refused
    assert str(spans[1]["lsn"]) in refused.stderr
    appliance.cli("image", "open", "g/inside", "--at", str(inside), "--force")
    appliance.cli("image", "close", "g/inside")
    refused = appliance.refusal("group", "rewind", "g", "--to", str(begun))
    assert refused.code == "conflict"
    assert "open an image" in refused.stderr
    assert appliance.refusal("attach", "g/w", str(file)).code == "busy"
    assert appliance.refusal("volume", "delete", "g/v", "--keep-base").code == "conflict"
    # What the host was writing is either in both or in neither.
    writer = Writer(address(volume["nbd_url"]), memory, half, half, seed=3, stamps=range(1_000_000, 2_000_000))
    writer.start()
    wait_until(lambda: writer.acknowledged > 100, "the host is writing")
    appliance.cli("detach", "g/v", "--keep-history")
    writer.join(60)
    now = file.read_bytes()
    assert not memory.check(half, now[half * BLOCK_BYTES :])
    kept = appliance.cli("volume", "show", "g/v")
    assert (kept["splitter"], kept["read_only"]) == (None, True)
    assert whole_disk(address(kept["nbd_url"])) == now
    past = appliance.cli("image", "open", "g/past", "--at", str(begun))
    assert len(whole_disk(address(past["nbd_url"]))) == len(now)


@pytest.mark.expect_log("group cannot be served")
def test_a_copy_that_takes_over_is_compared_with_production(appliance: Appliance, tmp_path: Path) -> None:
    """It lacks what came last, and the change map of the journal that is gone knows nothing of that."""
    file = tmp_path / "disk"
    file.write_bytes(random.Random(3).randbytes(BLOCKS * BLOCK_BYTES))
    volume = attach(appliance, file)
    wait_for(appliance, "synchronised")
    appliance.cli("copy", "add", "g/near", "--directory", str(tmp_path / "near"))
    head = appliance.cli("group", "head", "g")["lsn"]
    wait_until(lambda: (appliance.cli("copy", "show", "g/near")["durable_lsn"] or 0) >= head, "the copy is level")
    appliance.cli("copy", "pause", "g/near")
    wait_until(lambda: appliance.cli("copy", "show", "g/near")["state"] == "paused", "the copy is paused")
    io.write(volume["nbd_url"], 0x6B, "1M", "64k")
    wait_for(appliance, "synchronised")
    appliance.stop()
    (appliance.store / "groups" / "g" / "superblock").unlink()
    appliance.start()
    wait_until(lambda: appliance.cli("copy", "show", "g/near")["consistent"], "the copy is open")
    appliance.cli("copy", "promote", "g/near")
    wait_for(appliance, "synchronised")
    assert head_image(appliance, "head") == file.read_bytes()
    io.check(volume["nbd_url"], 0x6B, "1M", "64k")
    # It has a map of its own from here on.
    assert len(list((tmp_path / "near" / "splitter").iterdir())) == 1
    io.write(volume["nbd_url"], 0x22, "2M", "1M")
    appliance.restart()
    assert splitter(appliance)["state"] == "synchronised"
    assert head_image(appliance, "again") == file.read_bytes()


def settle_doubts(memory: Memory, disk: bytes) -> None:
    """Takes for granted what is found where the outcome is not known: a killed process may have written a part."""
    for doing in memory.doubtful:
        for block in range(doing.first, doing.first + doing.count):
            found = disk[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            stamp = struct.unpack("<Q", found[:8])[0]
            assert found == block_bytes(stamp, block)
            assert stamp in (doing.stamp, memory.stamps[block], *(d.stamp for d in memory.doubtful))
            memory.stamps[block] = stamp
    memory.doubtful.clear()


def test_file_and_head_are_equal_after_every_sigkill(appliance: Appliance, tmp_path: Path, soak: bool) -> None:
    seed = int(os.environ.get("PLAYHEAD_SEED", str(random.SystemRandom().getrandbits(32))))
    kills = int(os.environ.get("PLAYHEAD_KILLS", "100" if soak else "5"))
    print(f"PLAYHEAD_SEED={seed} PLAYHEAD_KILLS={kills}")
    choices = random.Random(seed)
    file = tmp_path / "disk"
    file.write_bytes(bytes(BLOCKS * BLOCK_BYTES))
    where = address(attach(appliance, file)["nbd_url"])
    memory = Memory([ZEROS] * BLOCKS)
    acknowledged = 0
    for kill in range(1, kills + 1):
        share = BLOCKS // 2
        first = kill * 10_000_000
        writers = [
            Writer(where, memory, part * share, share, choices.getrandbits(32), range(first + part * 5_000_000, first + (part + 1) * 5_000_000))
            for part in range(2)
        ]  # fmt: skip
        for writer in writers:
            writer.start()
        time.sleep(choices.uniform(0.02, 0.6))
        appliance.kill()
        for writer in writers:
            writer.join(60)
            assert writer.failure is None, writer.failure
            acknowledged += writer.acknowledged
        appliance.start()
        wait_for(appliance, "synchronised")
        disk = file.read_bytes()
        assert head_image(appliance, "head") == disk, f"kill {kill}"
        settle_doubts(memory, disk)
        assert not memory.check(0, disk), f"kill {kill}"
    assert acknowledged > kills


@pytest.mark.parametrize("where", [itself, loop_device])
def test_a_clean_stop_leaves_nothing_to_compare_and_what_others_changed_is_found(
    appliance: Appliance, tmp_path: Path, where: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(BLOCKS * BLOCK_BYTES))
    with where(file) as production:
        volume = attach(appliance, production)
        wait_for(appliance, "synchronised")
        io.write(volume["nbd_url"], 7, "0", "1M")
        # Looking at it changes nothing.
        appliance.stop()
        assert production.read_bytes()[: 1 << 20] == b"\7" * (1 << 20)
        appliance.start()
        assert splitter(appliance)["state"] == "synchronised"
        assert splitter(appliance)["marked_bytes"] == 0
        appliance.stop()
        with production.open("r+b") as changed:
            changed.seek(3 << 20)
            changed.write(b"x" * 512)
        appliance.expect("changed while it was not protected")
        appliance.start()
        wait_for(appliance, "synchronised")
        assert head_image(appliance, "head") == production.read_bytes()
        # With the service there nobody can tell, so an administrator may ask.
        with production.open("r+b") as changed:
            changed.write(b"y" * 512)
        appliance.cli("volume", "resync", "g/v")
        wait_for(appliance, "synchronised")
        assert head_image(appliance, "again") == production.read_bytes()
        appliance.stop()


@pytest.mark.expect_log("production is lost")
def test_a_production_that_is_gone_keeps_neither_service_nor_past_away(appliance: Appliance, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(b"z" * (BLOCKS * BLOCK_BYTES))
    volume = attach(appliance, file)
    wait_for(appliance, "synchronised")
    appliance.stop()
    elsewhere = file.rename(tmp_path / "elsewhere")
    appliance.start()
    assert splitter(appliance)["state"] == "production-lost"
    (alert,) = appliance.cli("status")["alerts"]
    assert alert.startswith("volume g/v is production-lost: ") and "`playhead attach g/v PATH`" in alert
    assert head_image(appliance, "head") == b"z" * (BLOCKS * BLOCK_BYTES)
    with pytest.raises(io.IoFailedError):
        io.check(volume["nbd_url"], ord("z"), "0", "4k")
    assert appliance.refusal("attach", "g/v", str(file)).code == "io"
    appliance.cli("attach", "g/v", str(elsewhere))
    wait_for(appliance, "synchronised")
    io.check(volume["nbd_url"], ord("z"), "0", "4k")
    appliance.cli("detach", "g/v", "--drop-history")
    assert appliance.cli("volume", "list") == []
    assert list((tmp_path / "store" / "groups" / "g" / "splitter").iterdir()) == []
    appliance.cli("group", "delete", "g")


@pytest.mark.expect_log("production is lost")
def test_a_replica_that_is_out_of_step_is_not_kept_as_history(appliance: Appliance, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(random.Random(4).randbytes(1 << 20) * 512)
    attach(appliance, file)
    appliance.kill()
    file.unlink()
    appliance.start()
    assert splitter(appliance)["state"] == "production-lost"
    dumped = appliance.run("journal", "dump", "g", "--limit", "1000000", "-o", "json").stdout.splitlines()
    assert [r["opcode"] for r in map(json.loads, dumped) if r["opcode"].startswith("RESYNC")] == ["RESYNC_BEGIN"]
    refused = appliance.refusal("detach", "g/v", "--keep-history")
    assert refused.code == "inconsistent" and "--drop-history" in refused.stderr, refused
    appliance.cli("detach", "g/v", "--drop-history")
    assert appliance.cli("volume", "list") == []


@pytest.mark.parametrize("choice", ["stop", "track"])
def test_a_full_journal_stops_hosts_or_is_made_up_for(tmp_path: Path, choice: str) -> None:
    small, file = tmp_path / "small", tmp_path / "disk"
    small.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        file.write_bytes(bytes(64 << 20))
        config = tmp_path / "playhead.toml"
        config.write_text('segment_bytes = "1M"\n')
        appliance = Appliance(small / "store", "--config", str(config), log=tmp_path / "log")
        appliance.expect(".")
        with appliance:
            volume = attach(appliance, file, "--on-journal-failure", choice)
            assert appliance.cli("group", "show", "g")["policy"]["on_journal_failure"] == choice
            wait_for(appliance, "synchronised")
            fill_up(appliance, volume["nbd_url"], choice)
            subprocess.run(["mount", "-o", "remount,size=256m", str(small)], check=True)
            wait_for(appliance, "synchronised")
            assert head_image(appliance, "head") == file.read_bytes()
            io.write(volume["nbd_url"], 0x7E, "60M", "1M")
            assert head_image(appliance, "again") == file.read_bytes()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def fill_up(appliance: Appliance, url: str, choice: str) -> None:
    """Writes more than the journal's disk holds."""
    commands = [f"write -P {megabyte + 1} {megabyte}M 1M" for megabyte in range(40)]
    if choice == "stop":
        with pytest.raises(io.IoFailedError) as full:
            io.qemu_io(url, *commands)
        assert "No space left" in str(full.value)
        assert splitter(appliance)["state"] == "stopped"
    else:
        io.qemu_io(url, *commands)
        found = splitter(appliance)
        assert found["state"] == "tracking"
        assert found["lag_bytes"] > 0
        assert found["lag_s"] is not None
    (alert,) = [a for a in appliance.cli("status")["alerts"] if a.startswith("volume g/v")]
    assert f"is {'stopped' if choice == 'stop' else 'tracking'}: " in alert and "make room for the journal" in alert
