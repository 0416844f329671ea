"""As much of a cluster file system as locking takes: a lock record and a heartbeat for each host, a sector each."""

from __future__ import annotations

import struct

from tests.initiator import cdb
from tests.initiator.cdb import BLOCK_BYTES
from tests.mover.datamover import DataMover
from tests.mover.device import Device

FREE = 0


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
        assert magic == b"LOCK"
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
        assert self.mover.swap(self.device, lba=self.lba + self.number, old=old, new=new), "the heartbeat was lost"
        self.beat += 1

    def release(self) -> None:
        """Gives the lock back."""
        owner, generation = self._lock()
        assert owner == self.number, f"host {self.number} held the lock that is {owner}'s"
        free = record(FREE, generation)
        assert self.mover.swap(self.device, lba=self.lba, old=record(owner, generation), new=free)
