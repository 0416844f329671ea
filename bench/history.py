"""A history of ten million writes: opening its images, reading them, restarting on it, its index.

The writes go straight into the engine: the program is the example `history` of the journal's crate,
which prints its metrics (metrics.py says how). This file builds and runs it, judges, and puts the
outcome on the page.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench import machine
from bench.metrics import WANTED_WRITES, HistoryResults, parse
from bench.paths import REPOSITORY, MissingError, program
from bench.report import HISTORY_FILE, publish

# A 4 KiB write with its record header and its share of everything else the engine keeps.
STORED_BYTES_PER_WRITE = 4400
LIMIT_SECONDS = 3600


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m bench.history`."""
    options = _parser().parse_args(arguments)
    directory: Path = options.dir.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lines = options.lines.read_text() if options.lines else _run(directory, options.writes)
        metrics, units = parse(lines.splitlines())
    except MissingError as error:
        print(f"bench.history: {error}", file=sys.stderr)
        return 2
    results = HistoryResults(
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=f"python -m bench.history --writes {options.writes}",
        commit=machine.commit(),
        machine=machine.facts(directory),
        writes=options.writes,
        metrics=metrics,
        units=units,
    )
    print(results.text())
    if options.writes >= WANTED_WRITES and not options.lines:
        results.save(directory / HISTORY_FILE)
        publish(directory)
    return 0


def _run(directory: Path, writes: int) -> str:
    """Builds the example in release mode and runs it in a fresh folder of `directory`, which is
    removed afterwards.
    """
    needed, free = writes * STORED_BYTES_PER_WRITE, shutil.disk_usage(directory).free
    if free < needed * 1.1:
        raise MissingError(
            f"{writes:,} writes need {needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free; "
            "next: --dir on another disk, or fewer --writes"
        )
    store = directory / "history"
    shutil.rmtree(store, ignore_errors=True)
    cargo = [program("cargo", "cargo"), "run", "--release", "--quiet", "-p", "playhead-journal"]
    command = [*cargo, "--example", "history", "--", str(store), str(writes)]
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"the history program did not end in {LIMIT_SECONDS} s") from error
    finally:
        shutil.rmtree(store, ignore_errors=True)
    if done.returncode != 0:
        raise MissingError(
            f"{' '.join(command)} failed with {done.returncode}; its words are above"
        )
    return done.stdout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.history", description=__doc__)
    parser.add_argument(
        "--writes", type=int, default=WANTED_WRITES, help="writes of history (default %(default)s)"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=REPOSITORY / ".work" / "bench",
        help="folder for the journal (default .work/bench)",
    )
    parser.add_argument(
        "--lines", type=Path, help="judge metric lines saved in a file instead of running"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
