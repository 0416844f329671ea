"""An array that does not do as it should, where and when a test says so: LUNs like that of `tests.lab.liar`, with faults."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.liar import BLOCK, BLOCK_COUNT, IQN, NAA, Ended, HungUpError, Liar, sense_data

READ, WRITE, FLUSH, TEST_UNIT_READY, UNMAP = 0x88, 0x8A, 0x35, 0x00, 0x42
XCOPY, COPY_REPORT = 0x83, 0x84
INQUIRY, REQUEST_SENSE, REPORT_LUNS = 0x12, 0x03, 0xA0
LUN = 0
POWER_ON, LUNS_CHANGED = (6, 0x2900), (6, 0x3F0E)

COPY_HEAD_BYTES, CSCD_BYTES, SEGMENT_BYTES = 16, 32, 28
"""Of the parameter list of an EXTENDED COPY(LID1)."""


@dataclass(frozen=True)
class Fault:
    """What becomes of the next command with this operation code."""

    code: int
    ended: Ended | None
    """`None`: the connection ends instead."""

    executed: float = 0.0
    """Which part of it is carried out all the same."""

    also: Callable[[], None] | None = None
    """What happens besides."""

    lun: int | None = None
    """Only there."""


def failing(key: int, code: int, *, deferred: bool = False) -> Ended:
    """CHECK CONDITION."""
    return Ended(status=2, sense=sense_data((key, code), deferred=deferred))


class Moody(Liar):
    """The array. What `faults` holds happens once each, in its order among commands of one code."""

    def __init__(self, folder: Path, luns: int = 1) -> None:
        super().__init__()
        self.faults: list[Fault] = []
        self.segments_max: int | None = None
        """How many segments of a copy it says to take; it does not say if it is none."""

        self.segments_run: int | None = None
        """How many segments of a copy are carried out; all of them if it is none."""

        self._folder = folder
        self._disks = [self.blocks, *(bytearray(BLOCK_COUNT * BLOCK) for _ in range(luns - 1))]
        self._mapped = list(range(luns))
        """Which disk each LUN is."""

        self._attentions: list[tuple[int, int]] = []
        self._told: dict[tuple[int, int], int] = {}
        """How many of them a connection, by its thread, has been told of on a LUN."""

        self._found: dict[int, int] = {}
        """How many there were before it was made."""

        self._other: socket.socket | None = None
        self._other_port = 0

    @property
    def target(self) -> str:
        return IQN

    @property
    def file(self) -> Path:
        """Its first LUN's blocks as they are now."""
        return self.file_of(0)

    def file_of(self, lun: int) -> Path:
        file = self._folder / f"moody-{lun}.img"
        file.write_bytes(self.disk_of(lun))
        return file

    def disk_of(self, lun: int) -> bytearray:
        """Its blocks themselves."""
        return self._disks[self._mapped[lun]]

    def swap(self, one: int, other: int) -> None:
        """An administrator has two LUNs change their numbers."""
        with self.one:
            self._mapped[one], self._mapped[other] = self._mapped[other], self._mapped[one]

    def attend_to(self, attention: tuple[int, int]) -> None:
        """Everybody hears of it, once on each LUN."""
        self._attentions.append(attention)

    def open_other(self) -> str:
        """Another portal, of a portal group of its own; the same as before if it was closed."""
        self._other = socket.create_server(("127.0.0.1", self._other_port))
        self._other_port = self._other.getsockname()[1]
        threading.Thread(target=self._serve, args=(self._other, 2), daemon=True).start()
        return f"127.0.0.1:{self._other_port}"

    def close_other(self) -> None:
        """No connection to it comes about."""
        assert self._other
        self._other.shutdown(socket.SHUT_RDWR)
        self._other.close()

    def lose_power(self, lun: int, lba: int, data: bytes) -> None:
        """Comes back at once, its connections alive, with what it had last written there: what came after is lost."""
        with self.one:
            self._disks[lun][lba * BLOCK : lba * BLOCK + len(data)] = data
            self.attend_to(POWER_ON)

    def _attend(self, connection: socket.socket, group: int) -> None:
        me = threading.get_ident()
        self._found[me] = len(self._attentions)
        self._told = {(who, lun): told for (who, lun), told in self._told.items() if who != me}
        super()._attend(connection, group)

    def answer(self, cdb: bytes, data: bytes) -> Ended:
        lun = self.addressed
        self.blocks = self.disk_of(lun)
        if cdb[0] == REPORT_LUNS:
            luns = b"".join(struct.pack(">Q", number << 48) for number in range(len(self._disks)))
            return Ended(struct.pack(">I4x", len(luns)) + luns)
        here = (fault for fault in self.faults if fault.code == cdb[0] and fault.lun in (None, lun))
        fault = next(here, None)
        if fault is None:
            return self._told_or(cdb, data, lun)
        self.faults.remove(fault)
        lba, count = struct.unpack_from(">QI", cdb, 2)
        part = int(count * fault.executed)
        if cdb[0] == WRITE and part:
            self.put(lba, data[: part * BLOCK])
        if cdb[0] in (UNMAP, XCOPY) and fault.executed:
            super().answer(cdb, data)
        if fault.also:
            fault.also()
        if fault.ended is None:
            self.hang_up()
            raise HungUpError
        if cdb[0] == READ and not fault.ended.status:
            return Ended(self.get(lba, part), left_over_bytes=(count - part) * BLOCK)
        return fault.ended

    def _told_or(self, cdb: bytes, data: bytes, lun: int) -> Ended:
        """The attention that is due; else the command is carried out."""
        me = threading.get_ident()
        told = self._told.get((me, lun), self._found[me])
        if told < len(self._attentions) and cdb[0] not in (INQUIRY, REQUEST_SENSE):
            self._told[me, lun] = told + 1
            return failing(*self._attentions[told])
        if cdb[0] == INQUIRY and cdb[1] & 1 and cdb[2] == 0x83:
            name = bytes((1, 3, 0, 16)) + name_of(self._mapped[lun])
            return Ended(bytes((0, 0x83)) + struct.pack(">H", len(name)) + name)
        if cdb[0] == COPY_REPORT and cdb[1] == 3 and self.segments_max:
            return Ended(struct.pack(">I4xHHII", 40, 16, self.segments_max, 4096, 0).ljust(44, b"\0"))
        if cdb[0] == XCOPY and cdb[1] == 0:
            self._copy(data)
            return Ended()
        return super().answer(cdb, data)

    def _copy(self, data: bytes) -> None:
        """Between its LUNs, by the last bytes of their names."""
        cscds, segments = struct.unpack_from(">H4xI", data, 2)
        names = range(COPY_HEAD_BYTES, COPY_HEAD_BYTES + cscds, CSCD_BYTES)
        luns = [data[at + 8 + 15] - NAA[-1] for at in names]
        first = COPY_HEAD_BYTES + cscds
        for at in list(range(first, first + segments, SEGMENT_BYTES))[: self.segments_run]:
            source, to, blocks, source_lba, lba = struct.unpack_from(">4xHH2xHQQ", data, at)
            part = self._disks[luns[source]][source_lba * BLOCK : (source_lba + blocks) * BLOCK]
            self._disks[luns[to]][lba * BLOCK : (lba + blocks) * BLOCK] = part


def name_of(lun: int) -> bytes:
    """The NAA name of a LUN."""
    return NAA[:-1] + bytes((NAA[-1] + lun,))
