"""A disk in the guest whose beginning the test knows byte by byte, and whose records in the journal it counts."""

from __future__ import annotations

import pytest

from .appliance import Disk
from .machine import Machine
from .playhead import PlayheadAppliance

MIB = 1 << 20
BLOCK = 512
WATCHED = MIB
"""How many bytes of a disk are known."""


class Watched:
    """A disk in the guest whose first bytes are known."""

    def __init__(self, machine: Machine, playhead: PlayheadAppliance, disk: Disk, device: str) -> None:
        self._machine = machine
        self._playhead = playhead
        self.disk = disk
        self.device = device
        self.expected = bytearray(WATCHED)

    def fill(self, data: bytes) -> None:
        """Writes `data` to the disk's beginning, past any cache."""
        self._machine.push(data, "/tmp/data")
        self._machine.check(f"dd if=/tmp/data of={self.device} bs=1M oflag=direct status=none; rm /tmp/data")
        self.expected[: len(data)] = data

    def put(self, first: int, data: bytes) -> None:
        """What the disk must have from block `first` on, from now."""
        self.expected[first * BLOCK : first * BLOCK + len(data)] = data

    def check(self) -> None:
        """Compares the disk's beginning with what it must be."""
        read = f"dd if={self.device} of=/tmp/read bs=1M count={WATCHED // MIB} iflag=direct status=none"
        self._machine.check(read)
        found = self._machine.pull("/tmp/read")
        if found != self.expected:
            wrong = [n for n in range(0, WATCHED, BLOCK) if found[n : n + BLOCK] != self.expected[n : n + BLOCK]]
            pytest.fail(f"{len(wrong)} blocks of {self.device} are wrong, the first at {wrong[0] // BLOCK}")

    def recorded(self, command: str, *opcodes: str) -> list[str]:
        """Runs a command and says which records it added to the journal; fails unless they are `opcodes`, if any are given."""
        before = self._playhead.head(self.disk)
        self._machine.check(command)
        records = [record["opcode"] for record in self._playhead.records(self.disk, before)]
        assert not opcodes or records == list(opcodes), f"{command} is recorded as {records}"
        return records
