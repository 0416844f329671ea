"""SIGKILL of the real daemon at random instants, under load from real NBD connections.

Every acknowledged write must be there after the restart, un-acknowledged ones wholly or not at all, and images of
moments noted before must be what the disk was then. `PLAYHEAD_KILLS` is how often (20 by default), `PLAYHEAD_SEED`
replays the choices (the scheduler's part of the race cannot be replayed).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .load import BLOCK_BYTES, Memory, Writer, whole_disk
from .service import Service, nbd_address

KILLS = int(os.environ.get("PLAYHEAD_KILLS", "20"))
GROUP = "crash"
VOLUME_BLOCKS = 16_384
VOLUMES = ("left", "right")
WRITERS_PER_VOLUME = 2
MOMENTS_KEPT = 6


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A daemon on a store of its own."""
    running = Service(tmp_path / "store", tmp_path / "log")
    running.start()
    yield running
    running.kill()


@dataclass(frozen=True)
class Moment:
    """What every volume held at an LSN."""

    lsn: int
    stamps: dict[str, list[int]]


def disk_address(service: Service, volume: str) -> tuple[str, int, str]:
    """Where a volume of production is exported now; the port may differ after each start."""
    return nbd_address(service.rest("GET", f"/groups/{GROUP}/volumes/{volume}")["nbd_url"])


def load_until_killed(
    service: Service, memories: dict[str, Memory], choices: random.Random, stamp_from: int
) -> list[Writer]:
    """Writers on every volume; the daemon dies among them. Returns the writers, which have noticed."""
    writers: list[Writer] = []
    share = VOLUME_BLOCKS // WRITERS_PER_VOLUME
    for name in VOLUMES:
        for part in range(WRITERS_PER_VOLUME):
            first_stamp = stamp_from + len(writers) * 1_000_000
            stamps = range(first_stamp, first_stamp + 1_000_000)
            seed = choices.getrandbits(32)
            address = disk_address(service, name)
            writers.append(Writer(address, memories[name], part * share, share, seed, stamps))
    for writer in writers:
        writer.start()
    time.sleep(choices.choice([choices.uniform(0.01, 0.2), choices.uniform(0.2, 1.0)]))
    service.kill()
    for writer in writers:
        writer.join(timeout=60)
        assert not writer.is_alive(), "a writer hangs though the daemon is dead"
        if writer.failure is not None:
            raise writer.failure
    return writers


def check_moment(service: Service, moment: Moment, name: str) -> None:
    """An image at a noted LSN is what the volumes were then."""
    opened = service.rest("POST", f"/groups/{GROUP}/images", {"name": name, "at": str(moment.lsn)})
    assert opened["point"]["lsn"] >= moment.lsn
    for disk in opened["volumes"]:
        wrong = Memory(moment.stamps[disk["name"]]).check(0, whole_disk(nbd_address(disk["nbd_url"])))
        assert not wrong, f"image at {moment.lsn}, {disk['name']}: {wrong[:5]} ({len(wrong)} blocks)"
    service.rest("DELETE", f"/groups/{GROUP}/images/{name}")


def test_everything_acknowledged_survives_sigkill(service: Service) -> None:
    """The law: acknowledged means captured."""
    seed = int(os.environ.get("PLAYHEAD_SEED", str(random.SystemRandom().getrandbits(32))))
    print(f"PLAYHEAD_SEED={seed} PLAYHEAD_KILLS={KILLS}")
    choices = random.Random(seed)
    service.rest("POST", "/groups", {"name": GROUP})
    for name in VOLUMES:
        service.rest("POST", f"/groups/{GROUP}/volumes", {"name": name, "size_bytes": VOLUME_BLOCKS * BLOCK_BYTES})
    memories = {name: Memory([0] * VOLUME_BLOCKS) for name in VOLUMES}
    moments: list[Moment] = []
    acknowledged = flushes = doubts = 0

    for kill in range(1, KILLS + 1):
        stamp_from = kill * 1_000_000 * len(VOLUMES) * WRITERS_PER_VOLUME
        for writer in load_until_killed(service, memories, choices, stamp_from):
            acknowledged += writer.acknowledged
            flushes += writer.flushes
        service.start()
        for name, memory in memories.items():
            doubts += len(memory.doubtful)
            disk = whole_disk(disk_address(service, name))
            wrong = memory.check(0, disk) + memory.settle_doubts(disk)
            assert not wrong, f"kill {kill}, {name}: {wrong[:5]} ({len(wrong)} in all)"
        head = service.head_lsn(GROUP)
        assert not moments or head >= moments[-1].lsn, "the head went back"
        moments.append(Moment(head, {name: memory.stamps.copy() for name, memory in memories.items()}))
        moments = choices.sample(moments, MOMENTS_KEPT) if len(moments) > MOMENTS_KEPT * 2 else moments
        moments.sort(key=lambda moment: moment.lsn)
        check_moment(service, choices.choice(moments), f"after-{kill}")

    for index, moment in enumerate(moments):
        check_moment(service, moment, f"last-{index}")
    print(f"{acknowledged} writes and {flushes} flushes acknowledged, {doubts} in doubt, over {KILLS} kills")
    assert acknowledged > KILLS, "there was hardly any load"
    assert service.stop() == 0
