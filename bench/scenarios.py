"""What is measured: loads as fio options, and the goals their results are held against."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Scenario:
    """One load. `unit` says which of a sample's figures is the rate people compare: "IOPS" or
    "MiB/s".
    """

    name: str
    title: str
    options: tuple[str, ...]
    unit: str = "IOPS"
    # Latency runs keep the cores awake and record percentiles; throughput runs spare the client
    # both costs.
    latency: bool = False
    # Moves a fixed number of bytes instead of running for a fixed time. A log writes new pages
    # where a plain file overwrites its own: with a clock, the faster server would be the one that
    # meets the kernel's dirty-page limit and so the disk.
    fixed_bytes: bool = False
    # Servers that write in place find their pages dirty, as in a load that has run for long. Not
    # for flushes: the first would pay for the whole region.
    dirty_before: bool = False
    # An unmeasured pass first, so that what is read is in memory: idle page cache does not stay there on
    # every machine.
    warm: bool = False
    # The past is given up as fast as it is made: a protection window that has reached its limit.
    sliding: bool = False


SCENARIOS = (
    Scenario(
        "randwrite",
        "4 KiB random write, queue depth 32",
        ("--rw=randwrite", "--bs=4k", "--iodepth=32"),
        dirty_before=True,
    ),
    Scenario(
        "randread",
        "4 KiB random read, queue depth 32",
        ("--rw=randread", "--bs=4k", "--iodepth=32"),
    ),
    Scenario(
        "flush",
        "4 KiB random write, queue depth 16, a flush after every 16 writes",
        ("--rw=randwrite", "--bs=4k", "--iodepth=16", "--fsync=16"),
    ),
    Scenario(
        "seqwrite",
        "1 MiB sequential write, queue depth 4",
        ("--rw=write", "--bs=1m", "--iodepth=4"),
        unit="MiB/s",
        dirty_before=True,
        fixed_bytes=True,
    ),
    Scenario(
        "seqread",
        "1 MiB sequential read, queue depth 4",
        ("--rw=read", "--bs=1m", "--iodepth=4"),
        unit="MiB/s",
        warm=True,
        fixed_bytes=True,
    ),
    Scenario(
        "latwrite",
        "4 KiB random write, queue depth 1",
        ("--rw=randwrite", "--bs=4k", "--iodepth=1"),
        latency=True,
        dirty_before=True,
    ),
    Scenario(
        "latread",
        "4 KiB random read, queue depth 1",
        ("--rw=randread", "--bs=4k", "--iodepth=1"),
        latency=True,
    ),
    # The last, since the window stays short.
    Scenario(
        "sliding",
        "4 KiB random write, queue depth 32, the window at its limit of 1 GiB and folded meanwhile",
        ("--rw=randwrite", "--bs=4k", "--iodepth=32"),
        dirty_before=True,
        sliding=True,
    ),
)


@dataclass(frozen=True)
class Lane:
    """A server over one protocol."""

    name: str
    server: str
    protocol: str


LANES = (
    Lane("playhead", "playhead", "iscsi"),
    Lane("tgtd", "tgtd", "iscsi"),
    Lane("ceiling", "ceiling", "iscsi"),
    Lane("playhead-nbd", "playhead", "nbd"),
    Lane("qemu-storage-daemon", "qemu-storage-daemon", "nbd"),
    Lane("nbdkit", "nbdkit", "nbd"),
)
# Those a host could use instead of Playhead; the ceiling is none of them.
PEER_LANES = ("tgtd", "qemu-storage-daemon", "nbdkit")
NBD_PEER_LANES = ("qemu-storage-daemon", "nbdkit")


@dataclass(frozen=True)
class Goal:
    """A wanted ratio: the median of `lane` over that of the best of `against`, in one scenario.

    `figure` is "rate" (the scenario's unit) or "server_cpu_us"; `at_least` tells which side of
    `bound` is good. A goal without a bound is shown for information.
    """

    title: str
    scenario: str
    lane: str
    against: tuple[str, ...]
    bound: float | None
    figure: str = "rate"
    at_least: bool = True


GOALS = (
    Goal("random write 4k over tgtd", "randwrite", "playhead", ("tgtd",), 2.5),
    Goal("random write 4k over the ceiling", "randwrite", "playhead", ("ceiling",), 0.7),
    Goal(
        "server CPU per 4k write over tgtd's",
        *("randwrite", "playhead", ("tgtd",), 0.4),
        figure="server_cpu_us",
        at_least=False,
    ),
    Goal("random write 4k, window sliding, over tgtd", "sliding", "playhead", ("tgtd",), None),
    Goal("random read 4k over tgtd", "randread", "playhead", ("tgtd",), 2.0),
    Goal("flush every 16 writes over the best peer", "flush", "playhead", PEER_LANES, 2.0),
    Goal("1 MiB sequential write over the ceiling", "seqwrite", "playhead", ("ceiling",), 0.9),
    Goal("1 MiB sequential read over the ceiling", "seqread", "playhead", ("ceiling",), 0.9),
    Goal(
        "NBD random write 4k over the best NBD peer",
        "randwrite",
        "playhead-nbd",
        NBD_PEER_LANES,
        None,
    ),
    Goal(
        "NBD random read 4k over the best NBD peer",
        "randread",
        "playhead-nbd",
        NBD_PEER_LANES,
        None,
    ),
    Goal(
        "NBD flush every 16 writes over the best NBD peer",
        "flush",
        "playhead-nbd",
        NBD_PEER_LANES,
        None,
    ),
    Goal(
        "NBD sequential write over the best NBD peer",
        "seqwrite",
        "playhead-nbd",
        NBD_PEER_LANES,
        None,
    ),
    Goal(
        "NBD sequential read over the best NBD peer",
        "seqread",
        "playhead-nbd",
        NBD_PEER_LANES,
        None,
    ),
)
