"""A LUN as a host knows it: who it is, what it says it can do, and what it turned out to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tests.initiator import cdb
from tests.initiator.session import Answer, CommandError, Session

ATTENTIONS_MAX = 16
INQUIRY_CHANGED = (6, 0x3F03)
ILLEGAL_REQUEST = 5


class Primitive(enum.Enum):
    """An offload, by the word the appliance's policy has for it."""

    ATS = "ats"
    XCOPY = "xcopy"
    WRITE_SAME = "write-same"
    UNMAP = "unmap"


class Claim(enum.Enum):
    """What the host believes of a primitive on a device; it finds out by using it."""

    UNKNOWN = "unknown"
    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"


@dataclass(frozen=True)
class Advertised:
    """What the device says of itself: standard INQUIRY, VPD pages 8F, B0 and B2, and whether it has EXTENDED COPY(LID1), for 3PC and
    page 8F speak of tokens as well. Limits are in blocks; 0 is "not reported"."""

    third_party_copy: bool
    copy_page: bool
    extended_copy: bool
    compare_and_write: int
    unmap: int
    unmap_descriptors: int
    write_same: int
    unmaps: bool

    def says(self, primitive: Primitive) -> bool:
        """Whether it claims to have the primitive."""
        return {
            Primitive.ATS: self.compare_and_write > 0,
            Primitive.XCOPY: self.third_party_copy and self.copy_page and self.extended_copy,
            Primitive.WRITE_SAME: self.write_same > 0,
            Primitive.UNMAP: self.unmaps and self.unmap > 0,
        }[primitive]


class Device:
    """One LUN of one session."""

    def __init__(self, session: Session, lun: int) -> None:
        self.session, self.lun = session, lun
        self.claims = dict.fromkeys(Primitive, Claim.UNKNOWN)
        self.probes = 0
        self.naa = b""
        self.advertised = self._probe()

    def execute(self, command: bytes, *, data: bytes = b"", read_bytes: int = 0) -> Answer:
        """Runs a command past unit attentions. One that says that INQUIRY data has changed makes the host look again."""
        for _ in range(ATTENTIONS_MAX):
            answer = self.session.execute(command, data=data, read_bytes=read_bytes, lun=self.lun)
            if not answer.attention:
                return answer
            if answer.key_code == INQUIRY_CHANGED:
                self.claims = dict.fromkeys(Primitive, Claim.UNKNOWN)
                self.advertised = self._probe()
        raise AssertionError("unit attentions without end")

    def must(self, command: bytes, *, data: bytes = b"", read_bytes: int = 0) -> bytes:
        """Runs a command that has to end in GOOD."""
        answer = self.execute(command, data=data, read_bytes=read_bytes)
        if not answer.good:
            raise CommandError(command, answer)
        return answer.data

    def offload(self, primitive: Primitive, command: bytes, data: bytes) -> bool:
        """Tries a primitive and learns from it. False: the host has to do the work itself."""
        answer = self.execute(command, data=data)
        if answer.good:
            self.claims[primitive] = Claim.SUPPORTED
        elif answer.key_code[0] == ILLEGAL_REQUEST:
            self.claims[primitive] = Claim.NOT_SUPPORTED
        return answer.good

    def may_try(self, primitive: Primitive) -> bool:
        """Whether the device is worth asking."""
        return self.claims[primitive] is not Claim.NOT_SUPPORTED

    def _probe(self) -> Advertised:
        self.probes += 1
        standard = self._page(None)
        pages = self._page(0)[4:]
        self.naa = cdb.naa_of(self._page(0x83))
        limits, provisioning = self._page(0xB0), self._page(0xB2)
        copies = self._page(0x8F) if 0x8F in pages else b""
        return Advertised(
            third_party_copy=bool(standard[5] & 0x08),
            copy_page=len(copies) > 4,
            extended_copy=self._has(0x83, 0),
            compare_and_write=limits[5],
            unmap=int.from_bytes(limits[20:24], "big"),
            unmap_descriptors=int.from_bytes(limits[24:28], "big"),
            write_same=int.from_bytes(limits[36:44], "big"),
            unmaps=bool(provisioning[5] & 0x80),
        )

    def _has(self, opcode: int, service_action: int) -> bool:
        command = cdb.report_opcode(opcode, service_action)
        return self.session.must(command, read_bytes=256, lun=self.lun)[1] & 7 == 3

    def _page(self, page: int | None) -> bytes:
        return self.session.must(cdb.inquiry(page), read_bytes=1024, lun=self.lun)
