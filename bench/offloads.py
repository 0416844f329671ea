"""Offloads at the size people use them: a clone of 100 GiB, zeros over 1 TiB, over iSCSI sessions.

`python -m bench.offloads` starts a service on an empty store, asks it over one session, and prints
what each command took: time to GOOD, bytes of journal, bytes on the wire. The clone is read back
and compared with its source, and both are read at random for their rates.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.appliance import Appliance

from bench import machine
from bench.grid import grid
from bench.paths import REPOSITORY
from bench.report import OFFLOADS_FILE, publish
from bench.spread import Spread
from playhead.lab import cdb
from playhead.lab.session import Session

BLOCK = 512
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
CLONE_BYTES = 100 * GIB
ZERO_BYTES = TIB
PIECE_BYTES = 4 * MIB  # what ESXi sends by default
SEGMENT_BYTES = GIB  # of a list that names 100 of them
WRITTEN_PIECES = 1024  # of 1 MiB, all over the source
FRAGMENTS = 20_000  # of 4 KiB, in its first 4 GiB
READS = 20_000
IN_FLIGHT = 32
REPEATS = 5

# Goals: milliseconds to GOOD, bytes of journal, for one command.
WANTED_MS = 100.0
WANTED_JOURNAL_BYTES = 1024


@dataclass(frozen=True)
class Row:
    """One kind of work: what was asked, and what one command of it cost."""

    work: str
    commands: int
    ms: list[float]
    journal_bytes: float
    wire_bytes: float
    single: bool

    def cells(self) -> tuple[str, ...]:
        time_ms = Spread.of(self.ms)
        good = time_ms.median < WANTED_MS and self.journal_bytes < WANTED_JOURNAL_BYTES
        return (
            self.work,
            f"{self.commands:,}",
            time_ms.text(2),
            f"{self.journal_bytes:,.0f}",
            f"{self.wire_bytes:,.0f}",
            ("PASS" if good else "MISS") if self.single else "",
        )


class Bench:
    """A service, and one session on the LUNs of its group."""

    def __init__(self, appliance: Appliance) -> None:
        self.appliance = appliance
        appliance.cli("group", "create", "offloads", "--window", "1h")
        for name, size in (("source", "100GiB"), ("clone", "100GiB"), ("big", "2TiB")):
            appliance.cli("volume", "create", f"offloads/{name}", "--size", size)
        disks = {n: appliance.disk(f"offloads/{n}") for n in ("source", "clone", "big")}
        self.lun = {name: int(disk["lun"]) for name, disk in disks.items()}
        self.session = Session(appliance.addresses["iscsi"], disks["source"]["iqn"], timeout_s=120)
        self.naa = {}
        for name, number in self.lun.items():
            self.session.ready(number)
            page = self.session.must(cdb.inquiry(0x83), read_bytes=1024, lun=number)
            self.naa[name] = cdb.naa_of(page)
        self.random = random.Random(1)

    def journal_head(self) -> int:
        return int(self.appliance.cli("group", "show", "offloads")["window"]["head"]["lsn"])

    def fill(self) -> None:
        """Content for the source: large pieces all over it, small ones in its beginning."""
        step = CLONE_BYTES // WRITTEN_PIECES
        chunk = self.random.randbytes(MIB)
        for at in range(0, CLONE_BYTES, step):
            data = at.to_bytes(8, "big") + chunk[8:]
            self._write(at, data)
        for _ in range(FRAGMENTS):
            at = self.random.randrange(4 * GIB // 4096) * 4096
            self._write(at, self.random.randbytes(16) * 256)

    def _write(self, at: int, data: bytes) -> None:
        command = cdb.write_16(at // BLOCK, len(data) // BLOCK)
        self.session.must(command, data=data, lun=self.lun["source"])

    def measure(self, work: str, ask: Callable[[], int], repeats: int = REPEATS) -> Row:
        """Times `ask`, which returns how many commands it sent."""
        times, commands = [], 0
        head, wire = self.journal_head(), self.session.wire.bytes
        for _ in range(repeats):
            start = time.perf_counter()
            commands += ask()
            times.append((time.perf_counter() - start) * 1000)
        single = commands == repeats
        if not single:
            times = [each * repeats / commands for each in times]
        return Row(
            work,
            commands,
            times,
            (self.journal_head() - head) / commands,
            (self.session.wire.bytes - wire) / commands,
            single,
        )

    def clone_whole(self) -> int:
        """One EXTENDED COPY whose list names all of it, in segments of type 0Ah."""
        ends = [self.naa["source"], self.naa["clone"]]
        moves = [
            cdb.OffsetSegment(0, 1, SEGMENT_BYTES, at // BLOCK, at // BLOCK)
            for at in range(0, CLONE_BYTES, SEGMENT_BYTES)
        ]
        command, parameters = cdb.extended_copy(ends, moves)
        self.session.must(command, data=parameters, lun=self.lun["clone"])
        return 1

    def clone_by_pieces(self) -> int:
        """As ESXi does: EXTENDED COPY of 4 MiB, several in flight."""
        ends = [self.naa["source"], self.naa["clone"]]
        blocks = PIECE_BYTES // BLOCK
        waiting: list[int] = []
        for number, at in enumerate(range(0, CLONE_BYTES // BLOCK, blocks)):
            # Copies in flight at once have list identifiers of their own.
            command, parameters = cdb.extended_copy(
                ends, [cdb.Segment(0, 1, blocks, at, at)], list_id=number % 200 + 1
            )
            waiting.append(self.session.start(command, data=parameters, lun=self.lun["clone"]))
            if len(waiting) >= 8:
                assert self.session.finish(waiting.pop(0)).good
        for itt in waiting:
            assert self.session.finish(itt).good
        return CLONE_BYTES // PIECE_BYTES

    def clone_by_token(self) -> int:
        """What a host sends: a token that stands for all of it is made, fetched and used."""
        self.write_token(self.make_token())
        return 3

    def make_token(self) -> bytes:
        """A token of the source, in ranges of 1 GiB."""
        command, parameters = cdb.populate_token(self._ranges(), list_id=7)
        self.session.must(command, data=parameters, lun=self.lun["source"])
        got = self.session.must(cdb.receive_rod_token(7), read_bytes=2048, lun=self.lun["source"])
        return cdb.rod_token_of(got)

    def write_token(self, token: bytes) -> int:
        """One WRITE USING TOKEN for all of it, in ranges of 1 GiB."""
        command, parameters = cdb.write_using_token(token, self._ranges(), list_id=8)
        self.session.must(command, data=parameters, lun=self.lun["clone"])
        return 1

    def _ranges(self) -> list[tuple[int, int]]:
        step = SEGMENT_BYTES // BLOCK
        return [(at, step) for at in range(0, CLONE_BYTES // BLOCK, step)]

    def zero(self) -> int:
        command = cdb.write_same_16(0, ZERO_BYTES // BLOCK, no_data=True)
        self.session.must(command, lun=self.lun["big"])
        return 1

    def pattern(self) -> int:
        command = cdb.write_same_16(0, ZERO_BYTES // BLOCK)
        self.session.must(command, data=b"pattern." * 64, lun=self.lun["big"])
        return 1

    def unmap(self) -> int:
        command, parameters = cdb.unmap([(0, ZERO_BYTES // BLOCK)])
        self.session.must(command, data=parameters, lun=self.lun["big"])
        return 1

    def compare(self) -> None:
        """The clone is its source: where something was written, and at random."""
        places = [self.random.randrange(CLONE_BYTES // MIB) * MIB for _ in range(256)]
        places += [at * (CLONE_BYTES // WRITTEN_PIECES) for at in range(WRITTEN_PIECES)]
        places += range(0, 256 * MIB, MIB)
        for at in places:
            command = cdb.read_16(at // BLOCK, MIB // BLOCK)
            both = [
                self.session.must(command, read_bytes=MIB, lun=self.lun[name])
                for name in ("source", "clone")
            ]
            assert both[0] == both[1], f"the clone differs from its source in the MiB at {at}"

    def read_rate(self, name: str) -> float:
        """Random reads of 4 KiB in the first 4 GiB, a second."""
        waiting: list[int] = []
        start = time.perf_counter()
        for _ in range(READS):
            at = self.random.randrange(4 * GIB // 4096) * 8
            waiting.append(
                self.session.start(cdb.read_16(at, 8), read_bytes=4096, lun=self.lun[name])
            )
            if len(waiting) >= IN_FLIGHT:
                assert self.session.finish(waiting.pop(0)).good
        for itt in waiting:
            assert self.session.finish(itt).good
        return READS / (time.perf_counter() - start)


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m bench.offloads`."""
    options = _parser().parse_args(arguments)
    directory: Path = options.dir.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    store = Path(tempfile.mkdtemp(prefix="offloads-", dir=directory))
    try:
        with Appliance(store / "store") as appliance:
            bench = Bench(appliance)
            bench.fill()
            token = bench.make_token()
            rows = [
                bench.measure("EXTENDED COPY of 100 GiB, one command", bench.clone_whole),
                bench.measure(
                    "WRITE USING TOKEN of 100 GiB, one command", lambda: bench.write_token(token)
                ),
                bench.measure("100 GiB by token (three commands)", bench.clone_by_token),
                bench.measure("EXTENDED COPY of 4 MiB, for 100 GiB", bench.clone_by_pieces, 1),
                bench.measure("WRITE SAME of zeros over 1 TiB", bench.zero),
                bench.measure("WRITE SAME of a pattern over 1 TiB", bench.pattern),
                bench.measure("UNMAP of 1 TiB", bench.unmap),
            ]
            bench.compare()
            rates = [(bench.read_rate("source"), bench.read_rate("clone")) for _ in range(3)]
            complaints = appliance.complaints()
    finally:
        shutil.rmtree(store, ignore_errors=True)
    ratio = Spread.of(clone / source for source, clone in rates)
    text = _text(rows, ratio, directory)
    print(text)
    for line in complaints:
        print(line, file=sys.stderr)
    saved = {"text": text, "rows": [asdict(row) for row in rows], "rates": rates}
    (directory / OFFLOADS_FILE).write_text(json.dumps(saved, indent=1) + "\n")
    publish(directory)
    return 1 if complaints else 0


def _text(rows: list[Row], ratio: Spread, directory: Path) -> str:
    head = grid(
        ("measured", f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}, commit {machine.commit()}"),
        [("command", "`python -m bench.offloads`"), *machine.facts(directory).items()],
    )
    wanted = f"wanted of one command: < {WANTED_MS:g} ms, < {WANTED_JOURNAL_BYTES:,} bytes"
    header = ("work", "commands", "ms a command", "journal bytes", "wire bytes", wanted)
    table = grid(header, [row.cells() for row in rows])
    tail = (
        "Bytes are for each command. The clone equals its source, byte for byte, wherever it was "
        f"compared; random 4 KiB reads of the clone made of 4 MiB pieces run at {ratio.text(2)} of "
        "the rate of its source.\n"
    )
    return f"{head}\n{table}\n{tail}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.offloads", description=__doc__)
    parser.add_argument(
        "--dir",
        type=Path,
        default=REPOSITORY / ".work" / "bench",
        help="where the store and results go",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
