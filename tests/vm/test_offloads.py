"""What hypervisors and clusters offload, sent by a real initiator's tools: the data is exact, the journal has one small record of each."""

from __future__ import annotations

import random

from .initiator import session
from .machine import Machine
from .playhead import PlayheadAppliance
from .watched import BLOCK, MIB, WATCHED, Watched

LARGE = 1 << 40
"""A disk that nobody could zero or copy by moving data. It is sparse."""
MISCOMPARE = 14
"""Exit code of sg3-utils."""


def test_zeroing_repeating_and_unmapping_are_one_record_each(
    machine: Machine, playhead: PlayheadAppliance, source: random.Random
) -> None:
    pattern = source.randbytes(BLOCK)
    disk = playhead.create_disk("offload-same", LARGE)
    with session(machine, [disk]) as [device]:
        watched = Watched(machine, playhead, disk, device)
        watched.fill(source.randbytes(WATCHED))
        machine.push(pattern, "/tmp/pattern")

        watched.recorded(f"sg_write_same --16 --lba=3 --num=1021 --in=/tmp/pattern {device}", "WRITE_SAME")
        watched.put(3, pattern * 1021)
        watched.recorded(f"sg_write_same --10 --lba=2047 --num=1 --in=/tmp/pattern {device}", "WRITE_SAME")
        watched.put(2047, pattern)
        watched.recorded(f"sg_write_same --16 --ndob --lba=1030 --num=7 {device}", "ZERO")
        watched.put(1030, bytes(7 * BLOCK))
        watched.recorded(f"sg_write_same --16 --unmap --lba=1100 --num=64 --in=/dev/zero {device}", "UNMAP")
        watched.put(1100, bytes(64 * BLOCK))
        watched.recorded(f"sg_unmap --force --lba=5,1301,1990 --num=1,8,7 {device}", "UNMAP", "UNMAP", "UNMAP")
        for first, count in ((5, 1), (1301, 8), (1990, 7)):
            watched.put(first, bytes(count * BLOCK))
        watched.check()

        # What no host could do by writing.
        before = playhead.head(disk)
        machine.check(f"blkdiscard --zeroout --offset {WATCHED} --length {LARGE // 2} {device}")
        machine.check(f"blkdiscard --offset {LARGE // 2} {device}")
        assert playhead.head(disk) - before < 256 * 1024
        watched.check()
        machine.check(f"cmp --bytes={MIB} {device} /dev/zero --ignore-initial={LARGE // 2}:0")


def test_compare_and_write_writes_on_a_match_alone(
    machine: Machine, playhead: PlayheadAppliance, source: random.Random
) -> None:
    disk = playhead.create_disk("offload-compare", 64 * MIB)
    with session(machine, [disk]) as [device]:
        watched = Watched(machine, playhead, disk, device)
        watched.fill(source.randbytes(WATCHED))
        for first, count in ((0, 1), (777, 1), (2039, 9)):
            old = bytes(watched.expected[first * BLOCK : (first + count) * BLOCK])
            new = source.randbytes(count * BLOCK)
            machine.push(old + new, "/tmp/pair")
            command = f"sg_compare_and_write --lba={first} --num={count} --in=/tmp/pair --xferlen={2 * count * BLOCK} {device}"
            watched.recorded(command, "WRITE")
            watched.put(first, new)
            # The second time it is another block already.
            before = playhead.head(disk)
            refused = machine.run(command)
            assert refused.status == MISCOMPARE, refused.text
            assert "Miscompare at byte offset" in refused.text
            assert playhead.head(disk) == before
        watched.check()
