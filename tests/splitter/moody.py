"""An array that does not do as it should, where and when a test says so: the LUN of `tests.lab.liar` with faults."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.liar import BLOCK, IQN, Ended, HungUpError, Liar, sense_data

READ, WRITE, FLUSH = 0x88, 0x8A, 0x35
LUN = 0


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


def failing(key: int, code: int, *, deferred: bool = False) -> Ended:
    """CHECK CONDITION."""
    return Ended(status=2, sense=sense_data((key, code), deferred=deferred))


class Moody(Liar):
    """The array. What `faults` holds happens once each, in its order among commands of one code."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.faults: list[Fault] = []
        self._file = folder / "moody.img"

    @property
    def target(self) -> str:
        return IQN

    @property
    def file(self) -> Path:
        """Its blocks as they are now."""
        self._file.write_bytes(self.blocks)
        return self._file

    def answer(self, cdb: bytes, data: bytes) -> Ended:
        if cdb[0] == 0xA0:
            return Ended(struct.pack(">I4xQ", 8, LUN))
        fault = next((fault for fault in self.faults if fault.code == cdb[0]), None)
        if fault is None:
            return super().answer(cdb, data)
        self.faults.remove(fault)
        lba, count = struct.unpack_from(">QI", cdb, 2)
        part = int(count * fault.executed)
        if cdb[0] == WRITE and part:
            self.put(lba, data[: part * BLOCK])
        if fault.also:
            fault.also()
        if fault.ended is None:
            self.hang_up()
            raise HungUpError
        if cdb[0] == READ and not fault.ended.status:
            return Ended(self.get(lba, part), left_over_bytes=(count - part) * BLOCK)
        return fault.ended
