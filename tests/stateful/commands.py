"""Random commands with random lists, most of them nearly right."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from tests.stateful.attacker import Attacker

from playhead.lab import cdb
from playhead.lab.cdb import BLOCK_BYTES, Segment

COUNTS = (0, 1, 2, 8, 64, 255)
OPCODES = bytes.fromhex(
    "00 03 08 0a 12 15 16 17 1a 1b 1e 25 28 2a 2e 2f 34 35 41 42 48 4d 55 5a 5e 5f 83 84 88 89 8a 8b 8e 8f 90 91 93 9c 9e a0 a3 a4 a8 aa ae af"
)
SERVICE_ACTIONS = {
    0x48: (1, 2, 3),
    0x5E: (0, 1, 2, 3),
    0x5F: tuple(range(9)),
    0x83: (0, 1, 0x10, 0x11, 0x1C),
    0x84: tuple(range(9)),
    0x9E: (0x10, 0x12),
    0xA3: (5, 0x0A, 0x0C, 0x0D),
    0xA4: (6, 0x0A),
}


ENDS_TASKS = (0x48, 0x5F)
"""SANITIZE, and PERSISTENT RESERVE OUT with PREEMPT AND ABORT."""


@dataclass(frozen=True)
class Asked:
    """A command: its CDB, the data for it, and how much data is expected of it."""

    cdb: bytes
    data: bytes = b""
    read_bytes: int = 0


def _read(by: Attacker) -> Asked:
    count = by.rng.choice(COUNTS)
    return Asked(cdb.read_16(by.lba(), count), read_bytes=count * BLOCK_BYTES)


def _write(by: Attacker) -> Asked:
    count = by.rng.choice(COUNTS[1:])
    return Asked(cdb.write_16(by.lba(), count, fua=by.rng.random() < 0.2), by.rng.randbytes(count * BLOCK_BYTES))


def _compare_and_write(by: Attacker) -> Asked:
    count = by.rng.choice((1, 2, 255))
    return Asked(cdb.compare_and_write(by.lba(), count), by.rng.choice((b"\0", b"\1")) * (2 * count * BLOCK_BYTES))


def _write_same(by: Attacker) -> Asked:
    count = by.rng.choice((1, 8, 2048, 1 << 20))
    no_data = by.rng.random() < 0.3
    block = b"" if no_data else by.rng.choice((b"\0", b"\7")) * BLOCK_BYTES
    return Asked(cdb.write_same_16(by.lba(), count, unmap=by.rng.random() < 0.5, no_data=no_data), block)


def _unmap(by: Attacker) -> Asked:
    stretches = [
        (by.lba() & (1 << 64) - 1, by.rng.choice((0, 1, 8, 4096))) for _ in range(by.rng.choice((0, 1, 3, 256, 257)))
    ]
    return Asked(*cdb.unmap(stretches))


def _extended_copy(by: Attacker) -> Asked:
    rng = by.rng
    names = [
        rng.choice((*by.ground.naas, *by.ground.naas, by.ground.forbidden.naa, rng.randbytes(16)))
        for _ in range(rng.choice((1, 2, 2, 2, 3)))
    ]
    segments = [
        Segment(rng.randrange(3), rng.randrange(3), rng.choice((0, 1, 64, 0xFFFF)), by.lba(), by.lba())
        for _ in range(rng.choice((0, 1, 1, 4, 40)))
    ]
    command, parameters = cdb.extended_copy(names, segments, list_id=rng.randrange(256))
    return Asked(command, _damaged(rng, parameters) if rng.random() < 0.3 else parameters)


def _reserve_out(by: Attacker) -> Asked:
    rng = by.rng
    keys = (0, 1, by.number, rng.getrandbits(64))
    parameters = struct.pack(">QQ4xB3x", rng.choice(keys), rng.choice(keys), rng.choice((0, 1, 4, 8, 255)))
    command = struct.pack(">BBB2xIB", 0x5F, rng.randrange(9), rng.choice((1, 3, 5, 6, 7, 8, 2)), len(parameters), 0)
    return Asked(command, parameters)


def _mode_select(by: Attacker) -> Asked:
    pages = (
        b"\x08\x12\x04" + bytes(17),
        b"\x08\x12" + bytes(18),
        b"\x0a\x0a\x02" + bytes(9),
        b"\x0a\x0a\x06\x00\x08" + bytes(7),
    )
    parameters = bytes(8) + by.rng.choice(pages)
    if by.rng.random() < 0.3:
        parameters = _damaged(by.rng, parameters)
    return Asked(struct.pack(">BB5xHB", 0x55, 0x10, len(parameters), 0), parameters)


def _groups(by: Attacker) -> Asked:
    states = b"".join(
        struct.pack(">BBH", by.rng.randrange(16), 0, by.rng.randrange(4)) for _ in range(by.rng.randrange(3))
    )
    parameters = bytes(4) + states
    return Asked(struct.pack(">BB4xIBB", 0xA4, 0x0A, len(parameters), 0, 0), parameters)


def _or_write(by: Attacker) -> Asked:
    count = by.rng.choice((1, 8))
    return Asked(struct.pack(">BBQIBB", 0x8B, 0, by.lba(), count, 0, 0), by.rng.randbytes(count * BLOCK_BYTES))


def _token(by: Attacker) -> Asked:
    rng = by.rng
    stretches = b"".join(
        struct.pack(">QI4x", by.lba(), rng.choice((0, 1, 8, 2048))) for _ in range(rng.choice((0, 1, 2)))
    )
    if rng.random() < 0.5:
        parameters = (
            struct.pack(">HBBI6xH", 14 + len(stretches), 0, 0, rng.choice((0, 1, 60)), len(stretches)) + stretches
        )
        action = 0x10
    else:
        token = rng.choice((b"\xff\xff\0\1\0\0\1\xf8" + bytes(504), rng.randbytes(512)))
        parameters = struct.pack(">HBBIQ", 534 + len(stretches), rng.randrange(4), 0, 0, 0) + token
        parameters += struct.pack(">6xH", len(stretches)) + stretches
        action = 0x11
    return Asked(struct.pack(">BB4xIIBB", 0x83, action, rng.randrange(4), len(parameters), 0, 0), parameters)


def _any(by: Attacker) -> Asked:
    """An opcode that exists, or any, with random fields."""
    rng = by.rng
    opcode = rng.choice(OPCODES) if rng.random() < 0.9 else rng.randrange(256)
    fields = bytearray(rng.choice((bytes(15), rng.randbytes(15))))
    if opcode in SERVICE_ACTIONS and rng.random() < 0.9:
        fields[0] = rng.choice(SERVICE_ACTIONS[opcode])
    for _ in range(rng.randrange(4)):
        fields[rng.randrange(15)] = rng.choice((0, 1, 4, 8, 0x10, 0x3F, 0x80, 0xFF))
    if rng.random() < 0.5:
        return Asked(bytes((opcode,)) + fields, read_bytes=rng.choice((0, 8, 512, 4096)))
    return Asked(bytes((opcode,)) + fields, rng.randbytes(rng.choice((0, 4, 24, 512, 1024))))


def _damaged(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(out[: rng.choice((len(out), rng.randrange(len(out) + 1)))])


KINDS = (
    _read, _read, _write, _write, _compare_and_write, _write_same, _unmap, _extended_copy, _extended_copy,
    _reserve_out, _mode_select, _groups, _or_write, _token, _any, _any, _any, _any,
)  # fmt: skip


def some(by: Attacker) -> Asked:
    """A command."""
    asked = by.rng.choice(KINDS)(by)
    if asked.cdb[0] in ENDS_TASKS:
        by.ground.resets.append(by.number)
    return asked
