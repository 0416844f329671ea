"""docs/formats.md is enough to read a group's files: a second reader, made from that page alone, finds what the engine's own finds."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.appliance import wait_until

from playhead import _native

SEGMENT_BYTES = 64 << 10
VOLUME_BYTES = 4 << 20
OPCODES = {
    1: "WRITE",
    2: "WRITE_SAME",
    3: "ZERO",
    4: "UNMAP",
    5: "COPY",
    6: "BOOKMARK",
    7: "BRANCH",
    8: "RESYNC_BEGIN",
    9: "RESYNC_END",
    10: "PAD",
}

_TABLE = []
for _byte in range(256):
    _crc = _byte
    for _ in range(8):
        _crc = (_crc >> 1) ^ (0x82F63B78 if _crc & 1 else 0)
    _TABLE.append(_crc)


def crc32c(data: bytes, start: int = 0) -> int:
    """CRC32C of `data`, going on from `start`."""
    crc = start ^ 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def superblock(directory: Path) -> dict[str, Any]:
    """The valid slot with the higher sequence."""
    data = (directory / "superblock").read_bytes()
    assert len(data) <= 2 * 262_144
    slots: dict[int, dict[str, Any]] = {}
    for number in range(2):
        slot = data[number * 262_144 : (number + 1) * 262_144]
        magic, version, length, sequence, zero, crc = struct.unpack_from("<8sIIQII", slot)
        text = slot[32 : 32 + length]
        assert (magic, version, zero) == (b"PHsuper\n", 1, 0)
        assert crc == crc32c(text, crc32c(slot[:28]))
        assert sequence % 2 == number
        slots[sequence] = json.loads(text)
    found: dict[str, Any] = slots[max(slots)]
    return found


def records(path: Path, group: uuid.UUID, seed: int) -> list[dict[str, int | str | bytes]]:
    """The records of a segment file."""
    data = path.read_bytes()
    assert len(data) == SEGMENT_BYTES
    magic, version, _, identity, number, size = struct.unpack_from("<8sII16sQQ", data)
    assert (magic, version, identity, size) == (b"PHseg\r\n\x1a", 1, group.bytes, SEGMENT_BYTES)
    assert path.name == f"{number:016x}.seg"
    assert struct.unpack_from("<I", data, 60)[0] == crc32c(data[:60])
    found: list[dict[str, int | str | bytes]] = []
    at = 64
    while len(data) - at >= 64 and data[at : at + 4] == b"PHr1":
        fields = struct.unpack_from("<4sIIB3sQQIIIIQQ", data, at)
        _, crc, payload_crc, opcode, zero, lsn, time_ns, epoch, timeline, volume, length, lba, count = fields
        payload = data[at + 64 : at + 64 + length]
        if lsn != number * SEGMENT_BYTES + at:
            break  # a left-over in a recycled segment
        assert crc == crc32c(data[at + 8 : at + 64], seed)
        assert payload_crc == crc32c(payload)
        assert zero == bytes(3)
        if OPCODES[opcode] == "PAD":
            break
        found.append(
            {
                "lsn": lsn,
                "time_ns": time_ns,
                "epoch": epoch,
                "timeline": timeline,
                "volume": volume,
                "opcode": OPCODES[opcode],
                "lba": lba,
                "count": count,
                "payload_bytes": length,
                "payload": payload,
            }
        )
        at += (64 + length + 7) & ~7
    return found


def index_entries(path: Path, seed: int) -> tuple[dict[str, int], list[tuple[int, ...]]]:
    """Header and entries of a segment index."""
    data = path.read_bytes()
    magic, version, entries_crc, number, count, last_time_ns, end = struct.unpack_from("<8sIIQQQQ", data)
    assert (magic, version) == (b"PHidx\r\n\x1a", 1)
    assert struct.unpack_from("<I", data, 92)[0] == crc32c(data[:92], seed)
    assert entries_crc == crc32c(data[96:], seed)
    assert len(data) == 96 + 48 * count
    timelines = list(struct.unpack_from(f"<{data[49]}I", data, 52))
    entries = [struct.unpack_from("<QQQQIIIB", data, 96 + 48 * i) for i in range(count)]
    assert timelines == sorted({entry[4] for entry in entries})
    assert data[48] == any(OPCODES[entry[7]] in ("BOOKMARK", "BRANCH", "COPY") for entry in entries)
    return {"number": number, "last_time_ns": last_time_ns, "end": end}, entries


def run_versions(path: Path, seed: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Kind and position of every block's newest version, by volume and block, as a run has it."""
    data = path.read_bytes()
    magic, version, timeline, level, _, index, entries, pages, keys_crc = struct.unpack_from("<8sIIIIQQQI", data)
    assert (magic, version) == (b"PHrun\r\n\x1a", 1)
    assert path.name == f"{timeline:08x}-{level}-{index:016x}.run"
    assert struct.unpack_from("<I", data, 60)[0] == crc32c(data[:60], seed)
    keys = data[4096 * (pages + 1) :]
    assert len(keys) == 8 * pages
    assert keys_crc == crc32c(keys, seed)
    found: dict[tuple[int, int], tuple[int, int]] = {}
    seen = 0
    for number in range(pages):
        page = data[4096 * (number + 1) : 4096 * (number + 2)]
        crc, count = struct.unpack_from("<II", page)
        assert crc == crc32c(page[4:], seed)
        assert page[8:16] == keys[8 * number : 8 * number + 8]
        for i in range(count):
            key, blocks, location = struct.unpack_from("<QIQ", page, 8 + 20 * i)
            kind, position = location >> 61, location & ((1 << 61) - 1)
            for block in range(blocks):
                at = (key >> 48, (key & ((1 << 48) - 1)) + block)
                assert at not in found
                found[at] = (kind, position + 512 * block if kind == 0 else position)
        seen += count
    assert seen == entries
    return found


def newest_versions(
    log: list[dict[str, Any]], timeline: int, first: int, end: int
) -> dict[tuple[int, int], tuple[int, int]]:
    """What the log's records say of the same: segments from `first` up to `end`."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    kinds = {"WRITE": 0, "WRITE_SAME": 1, "ZERO": 2, "UNMAP": 3, "COPY": 4}
    for record in log:
        kind = kinds.get(record["opcode"])
        if kind is None or record["timeline"] != timeline or not first <= record["lsn"] // SEGMENT_BYTES < end:
            continue
        position = record["lsn"] + (64 if kind < 2 else 0)
        for block in range(record["count"]):
            at = (record["volume"], record["lba"] + block)
            found[at] = (kind, position + 512 * block if kind == 0 else position)
    return found


def _use(server: _native.NbdServer, export: str, lun: _native.Lun, *commands: str) -> None:
    """As a host would."""
    server.add_export(export, lun)
    host, port = server.address
    arguments = [word for command in commands for word in ("-c", command)]
    url = f"nbd://{host}:{port}/{export}"
    subprocess.run(["qemu-io", "-f", "raw", *arguments, url], check=True, stdout=subprocess.DEVNULL, timeout=60)
    server.remove_export(export, 5.0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A group that was used and closed: writes of several kinds, a bookmark, a writable image, a rewind."""
    directory = tmp_path / "g"
    group = _native.Group.create(str(directory), "g", SEGMENT_BYTES)
    group.add_sparse_volume("v", VOLUME_BYTES)
    server = _native.NbdServer("127.0.0.1", 0)
    server.open()

    use = partial(_use, server)
    use("v", group.volume_lun("v"), *(f"write -P {n} {n * 12_800 % 65_536 * 16} 12800" for n in range(1, 50)))
    group.bookmark("here", "application")
    use("v", group.volume_lun("v"), "write -z 4096 8192", "discard 65536 65536", "write -P 77 512 512", "flush")
    group.open_image("i", group.head()["lsn"], True)
    use("i", group.image_lun("i", "v"), *(f"write -P {n} {n * 4096} 16384" for n in range(1, 9)))
    group.rewind(group.bookmarks()[0]["point"]["lsn"])
    use("v", group.volume_lun("v"), *(f"write -P {n} {n * 8192} 8192" for n in range(1, 9)))
    server.stop(5.0)
    group.close()
    return directory


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="needs qemu-io (qemu-utils)")
def test_a_reader_made_from_the_page_alone_agrees_with_the_engine(directory: Path) -> None:
    memory = superblock(directory)
    group = uuid.UUID(memory["id"])
    seed = crc32c(group.bytes)
    log: list[dict[str, Any]] = []
    for path in sorted((directory / "log").glob("*.seg")):
        log += records(path, group, seed)

    told: list[dict[str, Any]] = []

    def visit(record: _native.RecordDict) -> bool:
        told.append(dict(record))
        return True

    _native.dump(str(directory), 0, visit)
    assert [{key: record[key] for key in log[0] if key != "payload"} for record in told] == [
        {key: value for key, value in record.items() if key != "payload"} for record in log
    ]
    assert {record["opcode"] for record in log} >= {"WRITE", "ZERO", "UNMAP", "BOOKMARK", "BRANCH"}
    assert log[0]["lsn"] == 64

    bookmark = next(record for record in log if record["opcode"] == "BOOKMARK")
    assert bookmark["payload"] == b"\x01here"
    branches = [struct.unpack("<IIQB7x", record["payload"]) for record in log if record["opcode"] == "BRANCH"]
    assert [branch[3] for branch in branches] == [0, 1]
    assert branches[1][:3] == (3, 1, bookmark["lsn"])
    assert {int(number) for number in memory["history"]["timelines"]} == {1, 2, 3}
    assert [stay["timeline"] for stay in memory["history"]["stays"]] == [1, 3]
    assert [(image["name"], image["timeline"], image["writable"]) for image in memory["images"]] == [("i", 2, True)]
    assert memory["durable_lsn"] > log[-1]["lsn"]

    indexes = sorted((directory / "index").glob("*.idx"))
    assert indexes
    for path in indexes:
        header, entries = index_entries(path, seed)
        here = [record for record in log if record["lsn"] // SEGMENT_BYTES == header["number"]]
        keys = ("lsn", "time_ns", "lba", "count", "timeline", "volume", "payload_bytes")
        assert [entry[:7] for entry in entries] == [tuple(record[key] for key in keys) for record in here]
        assert [OPCODES[entry[7]] for entry in entries] == [record["opcode"] for record in here]
        assert header["last_time_ns"] == here[-1]["time_ns"]

    runs = sorted((directory / "index").glob("*.run"))
    assert {path.name.split("-")[1] for path in runs} >= {"0"}
    for path in runs:
        timeline, level, number = (int(part, 16) for part in path.stem.split("-"))
        first, end = number * 8**level, (number + 1) * 8**level
        assert run_versions(path, seed) == newest_versions(log, timeline, first, end), path.name


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="needs qemu-io (qemu-utils)")
def test_what_was_written_to_an_image_of_a_copy_is_a_groups_directory(directory: Path, tmp_path: Path) -> None:
    source, place = _native.Group.open(str(directory)), tmp_path / "copy"
    copy = _native.Copy.keep(source, str(place), "near", None, None, False)
    wait_until(lambda: copy.group() is not None and copy.standing()["lag_bytes"] == 0, "the copy is level")
    mine = copy.group()
    assert mine is not None
    mine.open_image("w", mine.head()["lsn"], True)
    server = _native.NbdServer("127.0.0.1", 0)
    server.open()
    _use(server, "w", mine.image_lun("w", "v"), "write -P 7 4096 4096", "discard 65536 65536", "flush")
    server.stop(5.0)
    copy.stop()
    source.close()
    memory, scratch = superblock(place), superblock(place / "scratch" / "w")
    (image,) = memory["images"]
    assert (image["name"], image["writable"], image["scratch"]) == ("w", False, scratch["id"])
    (volume,), (over,) = memory["volumes"], scratch["volumes"]
    for same in ("number", "name", "uuid", "block_count"):
        assert over[same] == volume[same], same
    assert over["base"] == []
    assert (scratch["edge"]["lsn"], scratch["folded"]) == (64, 64)
    group = uuid.UUID(scratch["id"])
    log = records(place / "scratch" / "w" / "log" / f"{0:016x}.seg", group, crc32c(group.bytes))
    found = [(record["opcode"], record["lba"], record["count"]) for record in log]
    assert found == [("WRITE", 8, 8), ("UNMAP", 128, 128)]
    assert log[0]["payload"] == b"\x07" * 4096
