"""`python -m bench.run`: every scenario against every server, in turns; table, verdicts, page."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TypeVar

from bench import fio, machine
from bench.appliance import Appliance, Attached
from bench.awake import cores_awake
from bench.load import Loader, LoadError, Sample
from bench.paths import REPOSITORY, MissingError
from bench.peers import PEERS
from bench.report import RESULTS_FILE, goals, publish, table
from bench.results import Results, verdicts
from bench.scenarios import LANES, MIB, SCENARIOS, Lane, Scenario
from bench.server import LUN_BYTES, Server

T = TypeVar("T")


@dataclass
class Bench:
    """Servers that are up, and where their LUNs are."""

    loader: Loader
    lanes: Sequence[Lane]
    servers: dict[str, Server]
    aging_bytes: int
    store_limit_bytes: int

    def __post_init__(self) -> None:
        self._urls: dict[str, dict[str, str]] = {}

    def up(self, name: str) -> None:
        """Starts a server on an empty LUN and fills it."""
        server = self.servers[name]
        server.halt()
        server.wipe()
        self._urls[name] = server.launch()
        protocols = [lane.protocol for lane in self.lanes if lane.server == name]
        lacking = [protocol for protocol in protocols if protocol not in self._urls[name]]
        if lacking:
            raise MissingError(f"{name} has no {', '.join(lacking)} URL; next: choose with --lanes")
        self.loader.prefill(self._urls[name][protocols[0]], self.aging_bytes)

    def down(self) -> None:
        """Ends every server and removes what it stored."""
        for server in self.servers.values():
            server.halt()
            server.wipe()

    def measure(self, scenario: Scenario, lane: Lane, round_: int) -> Sample:
        """One run; first the server begins anew if what it stores has outgrown the limit, as a
        journal does.
        """
        server = self.servers[lane.server]
        if server.stored_bytes() > self.store_limit_bytes:
            self.up(lane.server)
        url = self._urls[lane.server][lane.protocol]
        if scenario.sliding:
            server.slide()
        else:
            server.rest()
        # What earlier runs left dirty is written now, at nobody's cost.
        for each in self.servers.values():
            each.sync()
        if scenario.dirty_before:
            server.dirty_again(self.loader.region_bytes)
        if scenario.warm:
            self.loader.measure(scenario, lane.name, url, server.pid, round_)
        if not scenario.latency:
            return self.loader.measure(scenario, lane.name, url, server.pid, round_)
        with cores_awake() as spinners:
            return self.loader.measure(scenario, lane.name, url, server.pid, round_, spinners)


def main(arguments: list[str] | None = None) -> int:
    """Runs, prints, writes.

    Returns 1 if a run failed or, with --strict, a ratio was missed; 2 if there is nothing to judge.
    """
    signal.signal(signal.SIGTERM, _terminated)
    options = _options(arguments)
    directory: Path = options.dir.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lanes = _chosen(options.lanes, {lane.name: lane for lane in LANES}, "lane")
        scenarios = _chosen(options.only, {s.name: s for s in SCENARIOS}, "scenario")
        servers = _servers(directory, lanes, options.attach)
        loader = Loader(
            fio=fio.fio(),
            scratch=directory,
            region_bytes=options.region_mib * MIB,
            runtime_seconds=options.runtime,
            fixed_bytes=options.fixed_mib * MIB,
            patience_seconds=options.patience,
        )
    except MissingError as error:
        print(f"bench.run: {error}", file=sys.stderr)
        return 2
    bench = Bench(loader, lanes, servers, options.aging_mib * MIB, options.store_limit_mib * MIB)
    results = _blank(options, directory)
    try:
        for name in servers:
            print(f"starting and filling {name}", file=sys.stderr, flush=True)
            bench.up(name)
        results.versions = {"fio": fio.version(loader.fio)}
        results.versions |= {name: server.version() for name, server in servers.items()}
        _measure_all(bench, results, scenarios, options.rounds)
    except (MissingError, LoadError) as error:
        print(f"bench.run: {error}", file=sys.stderr)
        return 2
    finally:
        bench.down()
    return _conclude(options, directory, results)


def _measure_all(
    bench: Bench, results: Results, scenarios: Sequence[Scenario], rounds: int
) -> None:
    for scenario in scenarios:
        for round_ in range(rounds):
            for lane in bench.lanes:
                try:
                    sample = bench.measure(scenario, lane, round_)
                except LoadError as error:
                    bench.servers[lane.server].check_alive()
                    results.failures.append(f"{scenario.name}/{lane.name}: {error}")
                    print(f"  FAILED {results.failures[-1]}", file=sys.stderr, flush=True)
                    continue
                results.samples.append(sample)
                print(
                    f"  {scenario.name} {round_ + 1}/{rounds} {lane.name:20} "
                    f"{sample.iops:9,.0f} IOPS  "
                    f"{sample.mib_per_second:6,.0f} MiB/s  "
                    f"server {sample.server_cpu_us:7.1f} us/IO  "
                    f"client {sample.client_cores:.2f}  others {sample.other_cores:.2f}",
                    file=sys.stderr,
                    flush=True,
                )


def _conclude(options: argparse.Namespace, directory: Path, results: Results) -> int:
    found = verdicts(results)
    print(table(results))
    if found:
        print(goals(found))
    for failure in results.failures:
        print(f"failed: {failure}")
    if options.json:
        results.save(options.json)
    if _is_full(options):
        results.save(directory / RESULTS_FILE)
        publish(directory)
    missed = options.strict and any(verdict.word == "MISS" for verdict in found)
    return 1 if results.failures or missed else 0


def _is_full(options: argparse.Namespace) -> bool:
    """Whether the page may be written: only a run of everything stands for the commit."""
    return not (options.quick or options.only or options.lanes or options.attach)


def _blank(options: argparse.Namespace, directory: Path) -> Results:
    words = ["python -m bench.run"]
    if options.quick:
        words.append("--quick")
    for name in ("only", "lanes"):
        words += [f"--{name} {value}" for value in getattr(options, name) or ()]
    words += [f"--rounds {options.rounds}", f"--runtime {options.runtime:g}"]
    words += [f"--region-mib {options.region_mib}", f"--fixed-mib {options.fixed_mib}"]
    return Results(
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=" ".join(words),
        commit=machine.commit(),
        machine=machine.facts(directory),
        settings={
            "rounds": str(options.rounds),
            "patience": f"{options.patience:g} s",
            "runtime": f"{options.runtime:g} s",
            "lun": f"{LUN_BYTES >> 30} GiB",
            "region": f"{options.region_mib} MiB",
            "aging": f"{options.aging_mib} MiB",
            "fixed": f"{options.fixed_mib} MiB",
        },
    )


def _servers(directory: Path, lanes: Sequence[Lane], attach: str | None) -> dict[str, Server]:
    wanted = dict.fromkeys(lane.server for lane in lanes)
    peers = {kind.name: kind for kind in PEERS}
    servers: dict[str, Server] = {}
    for name in wanted:
        if name in peers:
            servers[name] = peers[name](directory)
        elif attach:
            pid, _, urls = attach.partition(":")
            servers[name] = Attached(directory, int(pid), urls.split(","))
        else:
            servers[name] = Appliance(directory)
    return servers


def _chosen(names: Sequence[str] | None, known: dict[str, T], what: str) -> list[T]:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise MissingError(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return [value for name, value in known.items() if not names or name in names]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with what --quick makes smaller and nobody set."""
    options = _parser().parse_args(arguments)
    usual = {
        "patience": 20.0,
        "rounds": 5,
        "runtime": 5.0,
        "region_mib": 1024,
        "fixed_mib": 2048,
        "aging_mib": 256,
    }
    quick = {
        "patience": 0.0,
        "rounds": 1,
        "runtime": 2.0,
        "region_mib": 256,
        "fixed_mib": 512,
        "aging_mib": 32,
    }
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="one short round: does it work? (the page is not written)",
    )
    add("--only", action="append", metavar="SCENARIO", help="this scenario; may be repeated")
    add(
        "--lanes", action="append", metavar="LANE", help="this server and protocol; may be repeated"
    )
    add("--rounds", type=int, help="rounds (default 5)")
    add("--runtime", type=float, help="seconds of each random run (default 5)")
    add("--patience", type=float, help="seconds to wait for a quiet machine before each run (20)")
    add("--region-mib", type=int, help="part of the LUN under load (default 1024)")
    add("--fixed-mib", type=int, help="bytes of each sequential run (default 2048)")
    add("--aging-mib", type=int, help="random rewrites after filling (default 256)")
    add(
        "--store-limit-mib",
        type=int,
        default=20480,
        help="a server that stores more begins anew (default %(default)s)",
    )
    add("--dir", type=Path, default=REPOSITORY / ".work" / "bench", help="(default .work/bench)")
    add("--json", type=Path, metavar="FILE", help="write every sample there too")
    add("--strict", action="store_true", help="exit with 1 when a wanted ratio is missed")
    add(
        "--attach",
        metavar="PID:URL[,URL]",
        help="measure this running server in Playhead's place, instead of starting one",
    )
    return parser


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
