"""iSCSI PDUs as bytes (RFC 7143 11): headers to send, headers received, digests, text. No sockets here."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crc32c import crc32c

BHS_BYTES = 48
RESERVED_TAG = 0xFFFF_FFFF
FINAL = 0x80
CONTINUE = 0x40
IMMEDIATE = 0x40

# Opcodes of initiators.
NOP_OUT, COMMAND, TASK_MANAGEMENT, LOGIN, TEXT, DATA_OUT, LOGOUT, SNACK = 0, 1, 2, 3, 4, 5, 6, 0x10
# Opcodes of targets.
NOP_IN, RESPONSE, TASK_RESPONSE, LOGIN_RESPONSE, TEXT_RESPONSE = 0x20, 0x21, 0x22, 0x23, 0x24
DATA_IN, LOGOUT_RESPONSE, R2T, ASYNC, REJECT = 0x25, 0x26, 0x31, 0x32, 0x3F

# Stages of a login.
SECURITY, OPERATIONAL, FULL_FEATURE = 0, 1, 3

# Task management functions (11.5.1).
ABORT_TASK, ABORT_TASK_SET, CLEAR_ACA, CLEAR_TASK_SET, LUN_RESET, WARM_RESET, COLD_RESET, REASSIGN = range(1, 9)


@dataclass(frozen=True)
class Digests:
    """Which digests are in force."""

    header: bool = False
    data: bool = False


@dataclass(frozen=True)
class Header:
    """A basic header segment; the fields most PDUs have, by the place they stand in."""

    raw: bytes

    @property
    def opcode(self) -> int:
        return self.raw[0] & 0x3F

    @property
    def flags(self) -> int:
        return self.raw[1]

    @property
    def data_bytes(self) -> int:
        return int.from_bytes(self.raw[5:8], "big")

    def word(self, at: int) -> int:
        """The 32-bit field at byte `at`."""
        return int(struct.unpack_from(">I", self.raw, at)[0])

    @property
    def itt(self) -> int:
        return self.word(16)

    @property
    def ttt(self) -> int:
        return self.word(20)


@dataclass(frozen=True)
class Received:
    """A PDU from the target."""

    header: Header
    data: bytes


def lun_field(number: int) -> bytes:
    """A LUN in its eight bytes: peripheral addressing below 256, flat above (SAM-5 4.7)."""
    first = 0 if number < 256 else 0x40 | number >> 8
    return bytes((first, number & 0xFF)) + bytes(6)


def header(
    opcode: int, flags: int, *, lun: int | bytes = 0, itt: int, words: tuple[int, ...] = (), tail: bytes = b""
) -> bytes:
    """A header: `words` stand from byte 20 on, `tail` after them; the rest is zero."""
    field = lun if isinstance(lun, bytes) else lun_field(lun)
    out = bytes((opcode, flags)) + bytes(6) + field + struct.pack(">I", itt)
    out += struct.pack(f">{len(words)}I", *(word & 0xFFFF_FFFF for word in words)) + tail
    return out.ljust(BHS_BYTES, b"\0")


def login(
    *,
    flags: int,
    isid: bytes,
    tsih: int,
    itt: int,
    cmd_sn: int,
    exp_stat_sn: int = 0,
    cid: int = 0,
    versions: tuple[int, int] = (0, 0),
) -> bytes:
    """A login request; `versions` are highest and lowest."""
    out = bytearray(header(LOGIN | IMMEDIATE, flags, lun=isid + struct.pack(">H", tsih), itt=itt))
    out[2:4] = bytes(versions)
    struct.pack_into(">HHII", out, 20, cid, 0, cmd_sn & 0xFFFF_FFFF, exp_stat_sn & 0xFFFF_FFFF)
    return bytes(out)


def whole(head: bytes, data: bytes = b"", digests: Digests | None = None, ahs: bytes = b"") -> bytes:
    """A PDU of a header and data: lengths, padding and digests put in."""
    digests = digests or Digests()
    head = head[:4] + bytes((len(ahs) // 4,)) + len(data).to_bytes(3, "big") + head[8:] + ahs
    parts = [head]
    if digests.header:
        parts.append(crc32c(head).to_bytes(4, "little"))
    if data:
        padded = data + bytes(-len(data) % 4)
        parts.append(padded)
        if digests.data:
            parts.append(crc32c(padded).to_bytes(4, "little"))
    return b"".join(parts)


def text(pairs: list[tuple[str, str]]) -> bytes:
    """Key=value pairs, each ended by NUL."""
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs)


def pairs(data: bytes) -> list[tuple[str, str]]:
    """The pairs of a text."""
    found = []
    for part in data.split(b"\0"):
        if part:
            key, _, value = part.decode().partition("=")
            found.append((key, value))
    return found
