"""Copies that the storage makes by itself, asked for by a real initiator's tools: EXTENDED COPY and tokens; and a group's copy on another disk,
tried by a host while production goes on."""

from __future__ import annotations

import random

from . import tokens
from .initiator import (
    Files,
    attached,
    check_file_system,
    contents,
    generic,
    make_file_system,
    mounted,
    session,
)
from .machine import Machine
from .playhead import PlayheadAppliance
from .watched import BLOCK, MIB, Watched

LARGE = 1 << 40
"""Sparse. Nobody could copy it by moving data."""

# Blocks from SKIP of the source to SEEK of the destination; none of them aligned to anything.
SKIP, SEEK, COUNT = 3, 501, 1009


def sg_xcopy(machine: Machine, source: str, sink: str, skip: int, seek: int, count: int) -> str:
    return f"sg_xcopy if={source} of={sink} bs={BLOCK} skip={skip} seek={seek} count={count} bpt=4096"


def ddpt(machine: Machine, source: str, sink: str, skip: int, seek: int, count: int) -> str:
    return f"ddpt --xcopy if={source} of={sink} bs={BLOCK} skip={skip} seek={seek} count={count} bpt=4096 --quiet"


TOOLS = (sg_xcopy, ddpt, tokens.copy_script)
"""Each gives the script that copies that many blocks by its own means."""


def test_a_copy_in_the_storage_is_one_record_and_stays_what_it_was(
    machine: Machine, playhead: PlayheadAppliance, source: random.Random
) -> None:
    disk = playhead.create_disk("copy-near", LARGE)
    neighbour = playhead.create_neighbour(disk, "neighbour", LARGE)
    with session(machine, [disk, neighbour]) as [one, other]:
        first = Watched(machine, playhead, disk, one)
        second = Watched(machine, playhead, neighbour, other)
        second.fill(source.randbytes(MIB))
        for tool in TOOLS:
            first.fill(source.randbytes(MIB))
            second.recorded(tool(machine, generic(machine, one), generic(machine, other), SKIP, SEEK, COUNT), "COPY")
            second.put(SEEK, bytes(first.expected[SKIP * BLOCK : (SKIP + COUNT) * BLOCK]))
            # What was copied is what was there then.
            first.recorded(f"sg_write_same --16 --lba=0 --num=2048 --in=/dev/zero {one}", "ZERO")
            first.put(0, bytes(MIB))
            second.check()
        first.check()

        # Within one LUN.
        first.fill(source.randbytes(MIB))
        node = generic(machine, one)
        first.recorded(sg_xcopy(machine, node, node, SKIP, 1025, COUNT), "COPY")
        first.put(1025, bytes(first.expected[SKIP * BLOCK : (SKIP + COUNT) * BLOCK]))
        first.check()

        # A hundred gigabytes, less a little, are some hundred references.
        before = playhead.head(disk)
        machine.check(tokens.copy_script(machine, node, generic(machine, other), 0, 0, (100 << 30) // BLOCK - 7))
        assert playhead.head(disk) - before < 64 * 1024
        second.expected[:] = first.expected
        second.check()


def test_a_copy_to_another_group_is_data(machine: Machine, playhead: PlayheadAppliance, source: random.Random) -> None:
    disk = playhead.create_disk("copy-from", 64 * MIB)
    far = playhead.create_disk("copy-to", 64 * MIB)
    with session(machine, [disk]) as [one], session(machine, [far]) as [other]:
        first = Watched(machine, playhead, disk, one)
        second = Watched(machine, playhead, far, other)
        second.fill(source.randbytes(MIB))
        for tool in TOOLS:
            first.fill(source.randbytes(MIB))
            before = playhead.head(far)
            machine.check(tool(machine, generic(machine, one), generic(machine, other), SKIP, SEEK, COUNT))
            assert playhead.head(far) - before >= COUNT * BLOCK
            second.put(SEEK, bytes(first.expected[SKIP * BLOCK : (SKIP + COUNT) * BLOCK]))
            second.check()
        first.check()


WORK = """
(
    for ((n = 0; ; n++)); do
        head -c $((RANDOM * 4)) /dev/urandom >{folder}/work$((n % 8)) && sync {folder}/work$((n % 8)) && echo $n >/run/worked
    done
) >/dev/null 2>&1 &
echo $! >/run/worker
"""
STOP_WORK = "kill $(cat /run/worker); while pgrep -x head; do sleep 0.1; done; cat /run/worked"


def test_a_file_system_on_a_groups_copy_is_tried_while_production_goes_on(
    machine: Machine, playhead: PlayheadAppliance, source: random.Random
) -> None:
    files = Files(source.randrange(1 << 32), count=30, largest_bytes=100_000)
    disk = playhead.create_disk("copied", 256 * MIB)
    with attached(machine, disk, "iscsi") as device:
        make_file_system(machine, device, "ext4")
        with mounted(machine, device) as folder:
            files.unpack(machine, folder)
            machine.check("sync")
            playhead.add_copy(disk, "near")
            machine.check(WORK.format(folder=folder))
            playhead.level(disk, "near")
            # In the middle of the work: whoever mounts the image has a log to replay.
            playhead.bookmark(disk, "tried")
            playhead.level(disk, "near")
            with playhead.image(disk, "tried", writable=True, copy="near") as image:
                with attached(machine, image, "iscsi") as tried:
                    with mounted(machine, tried) as there:
                        found = contents(machine, there)
                        assert files.digests.items() <= found.items()
                        machine.check(f"rm -r {there}/folder0; cp -r {there}/folder1 {there}/new; sync; fstrim {there}")
                    check_file_system(machine, tried, "ext4")
                    with mounted(machine, tried) as there:
                        assert {path for path in contents(machine, there) if path.startswith("new/")}
                playhead.level(disk, "near")
                playhead.verify_copy(disk, "near")
            assert int(machine.check(STOP_WORK)) > 0
            assert files.digests.items() <= contents(machine, folder).items()
        check_file_system(machine, device, "ext4")
    playhead.remove_copy(disk, "near")
