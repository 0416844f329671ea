"""What a LUN says of itself: standard INQUIRY, VPD pages 83, 8F, B0 and B2, READ CAPACITY(16), REPORT SUPPORTED OPERATION CODES.

Nothing here is believed; it is written down, so that it can be held against what the LUN does. Everything is read only. A page that is not there, or
shorter than it should be, says nothing. Counts are in logical blocks; 0 is "not reported".
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from playhead.lab import cdb
from playhead.lab.session import Answer, CommandError, ProtocolError

ILLEGAL_REQUEST = 5
STANDARD_BYTES, PAGE_BYTES = 96, 4096
SUPPORTED_AS_STANDARD, SUPPORTED_AS_VENDOR = 3, 5
"""SUPPORT field of REPORT SUPPORTED OPERATION CODES for one command (SPC-4 table 246)."""
SUPPORTED_COMMANDS = 0x0001
"""The third-party copy descriptor that lists commands (SPC-4 7.8.17.4)."""

Execute = Callable[[bytes, int], Answer]
"""Runs a command that reads that many bytes at most, past unit attentions."""


class Primitive(enum.Enum):
    """An offload, by the word that policies have for it."""

    ATS = "ats"
    XCOPY = "xcopy"
    WRITE_SAME = "write-same"
    UNMAP = "unmap"
    ODX = "odx"


OPCODES: dict[Primitive, tuple[tuple[int, int | None], ...]] = {
    Primitive.ATS: ((0x89, None),),
    Primitive.XCOPY: ((0x83, 0x00),),
    Primitive.WRITE_SAME: ((0x93, None),),
    Primitive.UNMAP: ((0x42, None),),
    Primitive.ODX: ((0x83, 0x10), (0x83, 0x11)),
}
"""Operation code and service action of the commands that change blocks."""


@dataclass(frozen=True)
class Advertised:
    """All of it, as it was read."""

    vendor: str
    product: str
    revision: str
    block_count: int
    block_bytes: int
    third_party_copy: bool
    """3PC of standard INQUIRY; it speaks of tokens as well as of EXTENDED COPY."""
    pages: tuple[int, ...]
    """VPD pages listed."""
    designator: bytes
    """The NAA designator of the unit, 8 or 16 bytes; empty if it has none."""
    copy_commands: frozenset[tuple[int, int]] | None
    """Operation codes and service actions in VPD page 8F; none if the page is not there."""
    compare_and_write: int
    unmap: int
    unmap_descriptors: int
    unmap_granularity: int
    unmap_alignment: int
    write_same: int
    unmaps: bool
    """LBPU."""
    write_same_unmaps: bool
    """LBPWS."""
    managed: bool
    """LBPME of READ CAPACITY(16)."""
    reads_zeros: bool
    """LBPRZ of READ CAPACITY(16): an unmapped block reads as zeros."""
    opcodes: dict[tuple[int, int | None], bool] = field(default_factory=dict)
    """What REPORT SUPPORTED OPERATION CODES says of the commands of offloads; without an entry, nothing."""

    def reported(self, primitive: Primitive) -> bool | None:
        """Whether the commands are reported as supported; none if nothing is."""
        found = [self.opcodes[code] for code in OPCODES[primitive] if code in self.opcodes]
        return all(found) if found else None

    def says(self, primitive: Primitive) -> bool:
        """Whether a host that reads all of it concludes that the LUN has the primitive."""
        if self.reported(primitive) is False:
            return False
        if primitive is Primitive.ATS:
            return self.compare_and_write > 0
        if primitive is Primitive.WRITE_SAME:
            return self.write_same > 0 or self.reported(primitive) is True
        if primitive is Primitive.UNMAP:
            return self.unmaps and self.unmap > 0
        wanted = {(code, action or 0) for code, action in OPCODES[primitive]}
        if self.copy_commands is not None:
            return self.third_party_copy and wanted <= self.copy_commands
        return self.third_party_copy and primitive is Primitive.XCOPY

    def because(self, primitive: Primitive) -> str:
        """What `says` rests on, for people."""
        reported = {True: "reported as supported", False: "reported as not supported", None: "not reported"}
        codes = f"command {reported[self.reported(primitive)]}"
        copies = "no VPD 8F" if self.copy_commands is None else "VPD 8F"
        return {
            Primitive.ATS: f"VPD B0: {self.compare_and_write} blocks; {codes}",
            Primitive.XCOPY: f"3PC={self.third_party_copy:d}; {copies}; {codes}",
            Primitive.WRITE_SAME: f"VPD B0: {self.write_same or 'no limit'}; {codes}",
            Primitive.UNMAP: (
                f"LBPME={self.managed:d} LBPRZ={self.reads_zeros:d}; VPD B2: LBPU={self.unmaps:d} LBPWS={self.write_same_unmaps:d}; "
                f"VPD B0: {self.unmap} blocks in {self.unmap_descriptors} descriptors, granularity {self.unmap_granularity}; {codes}"
            ),
            Primitive.ODX: f"3PC={self.third_party_copy:d}; {copies}; {codes}",
        }[primitive]


def ask(execute: Execute, who: str) -> Advertised:
    """Reads all of it. Raises CommandError if INQUIRY or READ CAPACITY(16) is refused, ProtocolError if they make no sense."""
    standard = _must(execute, cdb.inquiry(None, STANDARD_BYTES), STANDARD_BYTES, who)
    if len(standard) < 36:
        raise ProtocolError(f"{who} answers INQUIRY with {len(standard)} bytes")
    if standard[0] & 0x1F or standard[0] >> 5:
        raise ProtocolError(f"{who} is no disk: peripheral qualifier and type {standard[0]:#04x}")
    capacity = _must(execute, cdb.read_capacity_16(), 32, who).ljust(32, b"\0")
    block_bytes = int.from_bytes(capacity[8:12], "big")
    if block_bytes not in (512, 1024, 2048, 4096):
        raise ProtocolError(f"{who} has logical blocks of {block_bytes} bytes")
    pages = tuple(sorted(set(_page(execute, 0)[4:])))
    identification = _page(execute, 0x83) if 0x83 in pages else b""
    limits = (_page(execute, 0xB0) if 0xB0 in pages else b"").ljust(64, b"\0")
    provisioning = (_page(execute, 0xB2) if 0xB2 in pages else b"").ljust(8, b"\0")
    alignment = int.from_bytes(limits[32:36], "big")
    return Advertised(
        vendor=_text(standard[8:16]),
        product=_text(standard[16:32]),
        revision=_text(standard[32:36]),
        block_count=int.from_bytes(capacity[:8], "big") + 1,
        block_bytes=block_bytes,
        third_party_copy=bool(standard[5] & 0x08),
        pages=pages,
        designator=_designator(identification),
        copy_commands=_copy_commands(_page(execute, 0x8F)) if 0x8F in pages else None,
        compare_and_write=limits[5],
        unmap=int.from_bytes(limits[20:24], "big"),
        unmap_descriptors=int.from_bytes(limits[24:28], "big"),
        unmap_granularity=int.from_bytes(limits[28:32], "big"),
        unmap_alignment=alignment & 0x7FFF_FFFF if alignment >> 31 else 0,
        write_same=int.from_bytes(limits[36:44], "big"),
        unmaps=bool(provisioning[5] & 0x80),
        write_same_unmaps=bool(provisioning[5] & 0x40),
        managed=bool(capacity[14] & 0x80),
        reads_zeros=bool(capacity[14] & 0x40),
        opcodes=_opcodes(execute),
    )


def _must(execute: Execute, command: bytes, read_bytes: int, who: str) -> bytes:
    answer = execute(command, read_bytes)
    if not answer.good:
        raise CommandError(command, answer, who)
    return answer.data


def _page(execute: Execute, page: int) -> bytes:
    """A VPD page; empty if it is refused or is another one."""
    answer = execute(cdb.inquiry(page, PAGE_BYTES), PAGE_BYTES)
    data = answer.data
    if not answer.good or len(data) < 4 or data[1] != page:
        return b""
    return data[: 4 + int.from_bytes(data[2:4], "big")]


def _text(field: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in field).strip()


def _designator(page_83: bytes) -> bytes:
    """The unit's longest NAA name (SPC-4 7.8.6): association 0, type 3."""
    best, at = b"", 4
    while at + 4 <= len(page_83):
        length = page_83[at + 3]
        name = page_83[at + 4 : at + 4 + length]
        if page_83[at + 1] & 0x3F == 3 and len(name) == length and length in (8, 16) and length > len(best):
            best = name
        at += 4 + length
    return best


def _copy_commands(page_8f: bytes) -> frozenset[tuple[int, int]]:
    """The commands that the page's descriptor of supported commands lists."""
    at = 4
    while at + 4 <= len(page_8f):
        kind, length = int.from_bytes(page_8f[at : at + 2], "big"), int.from_bytes(page_8f[at + 2 : at + 4], "big")
        if kind == SUPPORTED_COMMANDS:
            return frozenset(_pairs(page_8f[at + 5 : at + 4 + length]))
        at += 4 + length
    return frozenset()


def _pairs(lists: bytes) -> list[tuple[int, int]]:
    found, at = [], 0
    while at + 2 <= len(lists):
        count = lists[at + 1]
        found += [(lists[at], action) for action in lists[at + 2 : at + 2 + count]]
        at += 2 + count
    return found


def _opcodes(execute: Execute) -> dict[tuple[int, int | None], bool]:
    found: dict[tuple[int, int | None], bool] = {}
    for code, action in [each for codes in OPCODES.values() for each in codes]:
        answer = execute(cdb.report_opcode(code, action), 256)
        if answer.good and len(answer.data) >= 2:
            support = answer.data[1] & 7
            if support:
                found[code, action] = support in (SUPPORTED_AS_STANDARD, SUPPORTED_AS_VENDOR)
        elif answer.key_code[1] == 0x2000:
            # It has no REPORT SUPPORTED OPERATION CODES at all.
            break
    return found
