"""As much of a cluster file system as locking takes: a lock record and a heartbeat for each host, a sector each."""

from __future__ import annotations

import struct

from playhead.errors import PlayheadError
from playhead.lab import cdb
from playhead.lab.cdb import BLOCK_BYTES
from playhead.lab.datamover import DataMover
from playhead.lab.device import Device

FREE = 0


class LostError(PlayheadError):
    """What a host held is not what it was: locking does not exclude."""

    def __init__(self, detail: str) -> None:
        super().__init__("io", detail, "switch the target's ats off")


def record(owner: int, generation: int) -> bytes:
    """A lock record: who holds it, and how often it was taken."""
    return struct.pack(">4sIQ", b"LOCK", owner, generation).ljust(BLOCK_BYTES, b"\0")


def pulse(host: int, beat: int) -> bytes:
    """A heartbeat record."""
    return struct.pack(">4sIQ", b"BEAT", host, beat).ljust(BLOCK_BYTES, b"\0")


class Host:
    """One host of the cluster and its lock at `lba`; its heartbeat lies `number` sectors after it."""

    def __init__(self, number: int, mover: DataMover, device: Device, lba: int) -> None:
        self.number, self.mover, self.device, self.lba = number, mover, device, lba
        self.beat = 0

    def format(self) -> None:
        """Makes a free lock and no heartbeats for two hosts."""
        sectors = record(FREE, 0) + pulse(1, 0) + pulse(2, 0)
        self.device.must(cdb.write_16(self.lba, 3), data=sectors)

    def _lock(self) -> tuple[int, int]:
        sector = self.device.must(cdb.read_16(self.lba, 1), read_bytes=BLOCK_BYTES)
        magic, owner, generation = struct.unpack_from(">4sIQ", sector)
        if magic != b"LOCK":
            raise LostError(f"{self.device.who}: there is no lock record at LBA {self.lba}")
        return owner, generation

    def acquire(self) -> bool:
        """Takes the lock if it is free."""
        owner, generation = self._lock()
        if owner != FREE:
            return False
        old, new = record(FREE, generation), record(self.number, generation + 1)
        return self.mover.swap(self.device, lba=self.lba, old=old, new=new)

    def steal(self, generation: int) -> bool:
        """Tries to take a lock believed to be free: what a host does that has not looked for a while."""
        old, new = record(FREE, generation), record(self.number, generation + 1)
        return self.mover.swap(self.device, lba=self.lba, old=old, new=new)

    def heartbeat(self) -> None:
        """Says that this host lives."""
        old, new = pulse(self.number, self.beat), pulse(self.number, self.beat + 1)
        if not self.mover.swap(self.device, lba=self.lba + self.number, old=old, new=new):
            raise LostError(f"{self.device.who}: host {self.number} has lost its heartbeat")
        self.beat += 1

    def release(self) -> None:
        """Gives the lock back."""
        owner, generation = self._lock()
        free = record(FREE, generation)
        if owner != self.number or not self.mover.swap(
            self.device, lba=self.lba, old=record(owner, generation), new=free
        ):
            raise LostError(f"{self.device.who}: host {self.number} held the lock that is {owner}'s")
