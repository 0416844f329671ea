"""SIGKILL of the real service at random instants, under load from real NBD connections.

Every acknowledged write must be there after the restart, un-acknowledged ones wholly or not at all, and images of
moments noted before must be what the disk was then. `PLAYHEAD_KILLS` is how often (20 by default, 200 in soak),
`PLAYHEAD_SEED` replays the choices (the scheduler's part of the race cannot be replayed).
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tests.appliance import Appliance

from .load import BLOCK_BYTES, Memory, Writer, whole_disk

GROUP = "crash"
VOLUME_BLOCKS = 16_384
VOLUMES = ("left", "right")
WRITERS_PER_VOLUME = 2
MOMENTS_KEPT = 4
IMAGE_EVERY = 5


@dataclass(frozen=True)
class Moment:
    """What every volume held at an LSN."""

    lsn: int
    stamps: dict[str, list[int]]


def nbd_address(url: str) -> tuple[str, int, str]:
    """Host, port and export name of an nbd:// URL."""
    parts = urlsplit(url)
    assert parts.scheme == "nbd"
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port, unquote(parts.path[1:])


def load_until_killed(
    appliance: Appliance,
    disks: dict[str, tuple[str, int, str]],
    memories: dict[str, Memory],
    choices: random.Random,
    stamp_from: int,
) -> list[Writer]:
    """Writers on every volume; the daemon dies among them. Returns the writers, which have noticed."""
    writers: list[Writer] = []
    share = VOLUME_BLOCKS // WRITERS_PER_VOLUME
    for name in VOLUMES:
        for part in range(WRITERS_PER_VOLUME):
            first_stamp = stamp_from + len(writers) * 1_000_000
            stamps = range(first_stamp, first_stamp + 1_000_000)
            seed = choices.getrandbits(32)
            writers.append(Writer(disks[name], memories[name], part * share, share, seed, stamps))
    for writer in writers:
        writer.start()
    time.sleep(choices.choice([choices.uniform(0.01, 0.2), choices.uniform(0.2, 1.0)]))
    appliance.kill()
    for writer in writers:
        writer.join(timeout=60)
        assert not writer.is_alive(), "a writer hangs though the daemon is dead"
        if writer.failure is not None:
            raise writer.failure
    return writers


def check_moment(appliance: Appliance, moment: Moment, name: str) -> None:
    """An image at a noted LSN is what the volumes were then."""
    opened = appliance.cli("image", "open", f"{GROUP}/{name}", "--at", str(moment.lsn))
    assert opened["point"]["lsn"] >= moment.lsn
    for disk in opened["volumes"]:
        wrong = Memory(moment.stamps[disk["name"]]).check(0, whole_disk(nbd_address(disk["nbd_url"])))
        assert not wrong, f"image at {moment.lsn}, {disk['name']}: {wrong[:5]} ({len(wrong)} blocks)"
    appliance.cli("image", "close", f"{GROUP}/{name}")


def test_everything_acknowledged_survives_sigkill(appliance: Appliance, soak: bool) -> None:
    """The law: acknowledged means captured."""
    seed = int(os.environ.get("PLAYHEAD_SEED", str(random.SystemRandom().getrandbits(32))))
    kills = int(os.environ.get("PLAYHEAD_KILLS", "200" if soak else "20"))
    print(f"PLAYHEAD_SEED={seed} PLAYHEAD_KILLS={kills}")
    choices = random.Random(seed)
    appliance.cli("group", "create", GROUP)
    for name in VOLUMES:
        appliance.cli("volume", "create", f"{GROUP}/{name}", "--size", str(VOLUME_BLOCKS * BLOCK_BYTES))
    # The ports stay over restarts.
    disks = {name: nbd_address(appliance.nbd_url(f"{GROUP}/{name}")) for name in VOLUMES}
    memories = {name: Memory([0] * VOLUME_BLOCKS) for name in VOLUMES}
    moments: list[Moment] = []
    acknowledged = flushes = doubts = 0

    for kill in range(1, kills + 1):
        stamp_from = kill * 1_000_000 * len(VOLUMES) * WRITERS_PER_VOLUME
        for writer in load_until_killed(appliance, disks, memories, choices, stamp_from):
            acknowledged += writer.acknowledged
            flushes += writer.flushes
        appliance.start()
        for name, memory in memories.items():
            doubts += len(memory.doubtful)
            disk = whole_disk(disks[name])
            wrong = memory.check(0, disk) + memory.settle_doubts(disk)
            assert not wrong, f"kill {kill}, {name}: {wrong[:5]} ({len(wrong)} in all)"
        head = int(appliance.cli("group", "head", GROUP)["lsn"])
        assert not moments or head >= moments[-1].lsn, "the head went back"
        moments.append(Moment(head, {name: memory.stamps.copy() for name, memory in memories.items()}))
        moments = choices.sample(moments, MOMENTS_KEPT) if len(moments) > MOMENTS_KEPT * 2 else moments
        moments.sort(key=lambda moment: moment.lsn)
        if kill % IMAGE_EVERY == 0:
            check_moment(appliance, choices.choice(moments), f"after-{kill}")

    for index, moment in enumerate(moments):
        check_moment(appliance, moment, f"last-{index}")
    print(f"{acknowledged} writes and {flushes} flushes acknowledged, {doubts} in doubt, over {kills} kills")
    assert acknowledged > kills, "there was hardly any load"
