"""Command descriptor blocks and parameter lists (SPC-4, SBC-3), as a host words them. LBAs and counts are in blocks."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK_BYTES = 512
"""Of a logical block, unless a function is told otherwise."""


def inquiry(page: int | None = None, allocation_bytes: int = 1024) -> bytes:
    return struct.pack(">BBBHB", 0x12, page is not None, page or 0, allocation_bytes, 0)


def read_capacity_16() -> bytes:
    return struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0)


def read_16(lba: int, count: int) -> bytes:
    return struct.pack(">BBQIBB", 0x88, 0, lba, count, 0, 0)


def write_16(lba: int, count: int, *, fua: bool = False) -> bytes:
    return struct.pack(">BBQIBB", 0x8A, fua << 3, lba, count, 0, 0)


def synchronize_cache() -> bytes:
    """Of the whole medium."""
    return struct.pack(">BBIBHB", 0x35, 0, 0, 0, 0, 0)


def compare_and_write(lba: int, count: int) -> bytes:
    return struct.pack(">BBQ3xBBB", 0x89, 0, lba, count, 0, 0)


def write_same_16(lba: int, count: int, *, unmap: bool = False, no_data: bool = False) -> bytes:
    return struct.pack(">BBQIBB", 0x93, unmap << 3 | no_data, lba, count, 0, 0)


def unmap(stretches: list[tuple[int, int]]) -> tuple[bytes, bytes]:
    """UNMAP and its list of (LBA, count)."""
    body = b"".join(struct.pack(">QI4x", lba, count) for lba, count in stretches)
    parameters = struct.pack(">HH4x", len(body) + 6, len(body)) + body
    return struct.pack(">BB4xBHB", 0x42, 0, 0, len(parameters), 0), parameters


def reserve_6() -> bytes:
    return bytes((0x16, 0, 0, 0, 0, 0))


def release_6() -> bytes:
    return bytes((0x17, 0, 0, 0, 0, 0))


def report_opcode(code: int, service_action: int | None = None) -> bytes:
    """REPORT SUPPORTED OPERATION CODES for one code, with a service action if it has them."""
    options = 0x01 if service_action is None else 0x02
    return struct.pack(">BBBBHIBB", 0xA3, 0x0C, options, code, service_action or 0, 256, 0, 0)


@dataclass(frozen=True)
class Segment:
    """A block to block segment of EXTENDED COPY: indexes of its descriptors, blocks."""

    source: int
    destination: int
    count: int
    source_lba: int
    lba: int

    def emit(self) -> bytes:
        """Type 02h."""
        head = struct.pack(">BBHHHHH", 2, 0, 0x18, self.source, self.destination, 0, self.count)
        return head + struct.pack(">QQ", self.source_lba, self.lba)


@dataclass(frozen=True)
class OffsetSegment:
    """A segment that counts bytes, up to 4 GiB: indexes of its descriptors, bytes, first blocks."""

    source: int
    destination: int
    byte_count: int
    source_lba: int
    lba: int

    def emit(self) -> bytes:
        """Type 0Ah."""
        head = struct.pack(">BBHHHI", 0x0A, 0, 0x1C, self.source, self.destination, self.byte_count)
        return head + struct.pack(">QQHH", self.source_lba, self.lba, 0, 0)


def extended_copy(
    designators: list[bytes],
    segments: Sequence[Segment | OffsetSegment],
    *,
    list_id: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[bytes, bytes]:
    """EXTENDED COPY(LID1) and its list, with identification descriptors E4 of NAA names of 8 or 16 bytes (SPC-4 6.4)."""
    targets = b"".join(
        b"\xe4\0\0\0" + bytes((1, 3, 0, len(naa))) + naa.ljust(20, b"\0") + b"\0" + block_bytes.to_bytes(3, "big")
        for naa in designators
    )
    moves = b"".join(segment.emit() for segment in segments)
    parameters = struct.pack(">BBH4xII", list_id, 0, len(targets), len(moves), 0) + targets + moves
    return struct.pack(">B9xIBB", 0x83, len(parameters), 0, 0), parameters


def populate_token(ranges: list[tuple[int, int]], *, list_id: int, timeout_s: int = 0) -> tuple[bytes, bytes]:
    """POPULATE TOKEN and its list of (LBA, count), for a token of the default type (SBC-4 5.9)."""
    body = b"".join(struct.pack(">QI4x", lba, count) for lba, count in ranges)
    parameters = struct.pack(">HBxII2xH", 14 + len(body), 0, timeout_s, 0, len(body)) + body
    return struct.pack(">BB4xIIBB", 0x83, 0x10, list_id, len(parameters), 0, 0), parameters


def write_using_token(
    token: bytes, ranges: list[tuple[int, int]], *, list_id: int, offset_blocks: int = 0
) -> tuple[bytes, bytes]:
    """WRITE USING TOKEN and its list of (LBA, count) (SBC-4 5.50)."""
    body = b"".join(struct.pack(">QI4x", lba, count) for lba, count in ranges)
    head = struct.pack(">HB5xQ", 534 + len(body), 0, offset_blocks)
    parameters = head + token + struct.pack(">6xH", len(body)) + body
    return struct.pack(">BB4xIIBB", 0x83, 0x11, list_id, len(parameters), 0, 0), parameters


def receive_rod_token(list_id: int, allocation_bytes: int = 2048) -> bytes:
    """RECEIVE ROD TOKEN INFORMATION (SPC-4 6.28)."""
    return struct.pack(">BBIIIBB", 0x84, 0x07, list_id, 0, allocation_bytes, 0, 0)


def rod_token_of(answer: bytes) -> bytes:
    """The token of 512 bytes in the answer to RECEIVE ROD TOKEN INFORMATION. Raises ValueError if there is none."""
    if len(answer) < 32:
        raise ValueError(f"the answer has {len(answer)} bytes")
    sense_bytes = answer[14]
    at = 32 + sense_bytes
    length = int.from_bytes(answer[at : at + 4], "big")
    if length != 2 + 512:
        raise ValueError(f"the ROD token descriptors are {length} bytes, not one token's 514")
    if len(answer) < at + 518:
        raise ValueError("the token is cut short")
    return answer[at + 6 : at + 518]


def naa_of(page_83: bytes) -> bytes:
    """The sixteen-byte NAA designator of a unit in VPD page 83h."""
    at = 4
    while at + 4 <= len(page_83):
        length = page_83[at + 3]
        if page_83[at + 1] & 0x3F == 3 and length == 16:
            return page_83[at + 4 : at + 20]
        at += 4 + length
    raise ValueError("no NAA 6 designator in VPD page 83h")
