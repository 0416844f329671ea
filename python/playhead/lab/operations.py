"""What a host does that it may hand to the storage: clone, zero, lock, reclaim. Each with the blocks that must come of it.

Everything happens on a LUN `target`, in a region with a guard on each side; a clone reads the same region of `source`. The blocks before an
operation are the same everywhere and nothing that any operation makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from playhead.lab import cdb, vmfs
from playhead.lab.advertised import Primitive
from playhead.lab.cdb import BLOCK_BYTES
from playhead.lab.datamover import ALIGNMENT_BLOCKS, DataMover, pieces
from playhead.lab.device import Device
from playhead.lab.settings import MIB, HostSettings
from playhead.lab.vmfs import LostError

GUARD_BLOCKS = MIB // BLOCK_BYTES
"""On both sides of what an operation is about; nothing may touch it."""
GUARD = b"\xa5"
LOCK_ROUNDS = 40
UNALIGNED_BLOCKS = 24
"""What is reclaimed begins and ends this far from a whole MiB."""

SWITCHED_OFF = {
    Primitive.XCOPY: HostSettings(hardware_accelerated_move=False),
    Primitive.WRITE_SAME: HostSettings(hardware_accelerated_init=False),
    Primitive.ATS: HostSettings(hardware_accelerated_locking=False),
    Primitive.UNMAP: HostSettings(enable_block_delete=False),
}
"""A host's settings without one offload."""
OPERATION_OF = {
    Primitive.ATS: "lock",
    Primitive.XCOPY: "clone",
    Primitive.WRITE_SAME: "zero",
    Primitive.UNMAP: "reclaim",
}


@dataclass(frozen=True)
class Places:
    """Where an operation happens: devices of hosts that are logged in. The hosts share `target`."""

    source: Device
    target: Device
    other_host: Device
    content: bytes
    """The region of `source`."""

    @property
    def region_blocks(self) -> int:
        return len(self.content) // BLOCK_BYTES

    @property
    def all_blocks(self) -> int:
        """Region and guards."""
        return self.region_blocks + 2 * GUARD_BLOCKS


@dataclass(frozen=True)
class Work:
    """What is to be done, and the blocks of region and guards that must come of it: if the array took what it was offered, or if nobody did."""

    do: Callable[[], object]
    wanted: bytes
    wanted_untaken: bytes


def write(device: Device, lba: int, data: bytes) -> None:
    """Plain writes of 1 MiB."""
    for offset, blocks in pieces(len(data) // BLOCK_BYTES, GUARD_BLOCKS):
        part = data[offset * BLOCK_BYTES : (offset + blocks) * BLOCK_BYTES]
        device.must(cdb.write_16(lba + offset, blocks), data=part)


def read(device: Device, lba: int, count: int) -> bytes:
    """Plain reads of 1 MiB."""
    parts = [
        device.must(cdb.read_16(lba + offset, blocks), read_bytes=blocks * BLOCK_BYTES)
        for offset, blocks in pieces(count, GUARD_BLOCKS)
    ]
    return b"".join(parts)


def prepare(primitive: Primitive, settings: HostSettings, places: Places, filler: Device) -> Work:
    """Fills the target by `filler`, and says what is to be done."""
    write(filler, 0, GUARD * (places.all_blocks * BLOCK_BYTES))
    guard = GUARD * (GUARD_BLOCKS * BLOCK_BYTES)
    mover, start, count = DataMover(settings), GUARD_BLOCKS, places.region_blocks
    if primitive is Primitive.XCOPY:
        wanted = guard + places.content + guard
        return Work(
            lambda: mover.clone(places.source, places.target, source_lba=start, lba=start, count=count), wanted, wanted
        )
    if primitive is Primitive.WRITE_SAME:
        wanted = guard + bytes(count * BLOCK_BYTES) + guard
        return Work(lambda: mover.zero(places.target, lba=start, count=count), wanted, wanted)
    if primitive is Primitive.UNMAP:
        return _reclaim(mover, places)
    return _locking(mover, places)


def _reclaim(mover: DataMover, places: Places) -> Work:
    free_lba, free = GUARD_BLOCKS + UNALIGNED_BLOCKS, places.region_blocks - 2 * UNALIGNED_BLOCKS
    # What is not in use may hold anything; here it is the old data, or zeros if the array took whole MiBs.
    before = GUARD * (places.all_blocks * BLOCK_BYTES)
    first = -(-free_lba // ALIGNMENT_BLOCKS) * ALIGNMENT_BLOCKS
    end = (free_lba + free) // ALIGNMENT_BLOCKS * ALIGNMENT_BLOCKS
    taken = (
        before[: first * BLOCK_BYTES]
        + bytes(max(0, end - first) * BLOCK_BYTES)
        + before[max(end, first) * BLOCK_BYTES :]
    )
    return Work(lambda: mover.reclaim(places.target, lba=free_lba, count=free), taken, before)


def _locking(mover: DataMover, places: Places) -> Work:
    hosts = [vmfs.Host(1, mover, places.target, GUARD_BLOCKS), vmfs.Host(2, mover, places.other_host, GUARD_BLOCKS)]
    hosts[0].format()

    def excluded(taken: bool) -> None:
        if taken:
            raise LostError(f"{places.target.who}: two hosts hold the lock")

    def work() -> None:
        for round_ in range(LOCK_ROUNDS):
            holder, other = hosts[round_ % 2], hosts[1 - round_ % 2]
            if not holder.acquire():
                raise LostError(f"{places.target.who}: a free lock was refused")
            excluded(other.acquire())
            excluded(other.steal(round_))
            holder.heartbeat()
            holder.release()

    beats = LOCK_ROUNDS // 2
    sectors = vmfs.record(vmfs.FREE, LOCK_ROUNDS) + vmfs.pulse(1, beats) + vmfs.pulse(2, beats)
    guard = GUARD * (GUARD_BLOCKS * BLOCK_BYTES)
    wanted = guard + sectors + GUARD * (places.region_blocks * BLOCK_BYTES - len(sectors)) + guard
    return Work(work, wanted, wanted)
