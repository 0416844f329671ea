"""One run of fio against one URL, and what it cost."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.paths import MissingError
from bench.processes import cpu_seconds, machine_busy_seconds, wait_for_quiet
from bench.scenarios import MIB, Scenario

MARGIN_SECONDS = 120


class LoadError(Exception):
    """fio did not finish, or saw an I/O error; the text is its last words."""


@dataclass(frozen=True)
class Sample:
    """What one run measured. Rates are of completed reads or writes; flushes are not counted."""

    scenario: str
    lane: str
    round: int
    iops: float
    mib_per_second: float
    # CPU time of the server's process during the run over completed reads or writes, in
    # microseconds.
    server_cpu_us: float
    # Cores in use by fio, and by everything that is neither fio, the server nor a spinner (builds,
    # write-back, stolen time).
    client_cores: float
    other_cores: float
    # Latency from issue to completion in microseconds, of latency scenarios only.
    p50_us: float | None
    p99_us: float | None


@dataclass(frozen=True)
class Loader:
    """Runs fio. `region_bytes` is the part of the LUN that loads touch; `scratch` takes fio's
    output.
    """

    fio: Path
    scratch: Path
    region_bytes: int
    runtime_seconds: float
    fixed_bytes: int
    patience_seconds: float

    def prefill(self, url: str, aging_bytes: int) -> None:
        """Makes the region real data: written once from end to end, then in part again in random 4
        KiB pieces.

        Every server gets the same, so that reads afterwards meet a LUN that has been used.
        """
        self._fio(
            url, ("--rw=write", "--bs=1m", "--iodepth=4", f"--io_size={self.region_bytes}"), seed=1
        )
        self._fio(
            url, ("--rw=randwrite", "--bs=4k", "--iodepth=32", f"--io_size={aging_bytes}"), seed=2
        )

    def measure(
        self,
        scenario: Scenario,
        lane: str,
        url: str,
        server_pid: int,
        round_: int,
        spinners: Sequence[int] = (),
    ) -> Sample:
        """One run of `scenario`. The same round gives every server the same sequence of offsets."""
        options = list(scenario.options)
        if scenario.fixed_bytes:
            options.append(f"--io_size={self.fixed_bytes}")
        else:
            options += ["--time_based", f"--runtime={self.runtime_seconds}"]
        # Total latency: of completion latency, engines disagree about where sending ends and
        # waiting begins.
        options += ["--lat_percentiles=1"] if scenario.latency else ["--gtod_reduce=1"]
        wait_for_quiet(self.patience_seconds, spinners)
        began = time.monotonic()
        server, spun = cpu_seconds(server_pid), sum(map(cpu_seconds, spinners))
        busy, client = machine_busy_seconds(), _children_cpu_seconds()
        job = self._fio(url, options, seed=100 + round_)
        busy, client = machine_busy_seconds() - busy, _children_cpu_seconds() - client
        server, spun = cpu_seconds(server_pid) - server, sum(map(cpu_seconds, spinners)) - spun
        wall = time.monotonic() - began
        side = job["read"] if "read" in scenario.options[0] else job["write"]
        completed = max(int(side["total_ios"]), 1)
        percentiles = side.get("lat_ns", {}).get("percentile", {}) if scenario.latency else {}
        return Sample(
            scenario=scenario.name,
            lane=lane,
            round=round_,
            iops=float(side["iops"]),
            mib_per_second=float(side["bw_bytes"]) / MIB,
            server_cpu_us=server * 1e6 / completed,
            client_cores=client / wall,
            other_cores=max(busy - client - server - spun, 0.0) / wall,
            p50_us=percentiles["50.000000"] / 1000 if percentiles else None,
            p99_us=percentiles["99.000000"] / 1000 if percentiles else None,
        )

    def _fio(self, url: str, options: Sequence[str], seed: int) -> dict[str, Any]:
        """Runs one job and returns fio's JSON of it."""
        output = self.scratch / "fio.json"
        command = [
            str(self.fio),
            "--name=bench",
            *_engine(url),
            f"--size={self.region_bytes}",
            "--thread",
            "--norandommap",
            "--random_generator=tausworthe64",
            "--randrepeat=0",
            f"--randseed={seed}",
            "--output-format=json",
            f"--output={output}",
            *options,
        ]
        limit = self.runtime_seconds + MARGIN_SECONDS
        try:
            done = subprocess.run(
                command,
                cwd=self.scratch,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadError(f"fio did not finish in {limit:.0f} s: {' '.join(command)}") from error
        if done.returncode != 0:
            words = (done.stderr + done.stdout + output.read_text()).strip().splitlines()
            raise LoadError("\n".join(words[:5]))
        text = output.read_text()
        # fio writes its notes before the JSON.
        result: dict[str, Any] = json.loads(text[text.index("{") :])
        job: dict[str, Any] = result["jobs"][0]
        if job["error"]:
            raise LoadError(f"fio: error {job['error']} from {url}")
        return job


def _engine(url: str) -> list[str]:
    if url.startswith("iscsi://"):
        # A bare colon separates file names.
        return ["--ioengine=libiscsi", "--filename=" + url.replace(":", "\\:")]
    if url.startswith("nbd://"):
        return ["--ioengine=nbd", f"--uri={url}"]
    raise MissingError(f"no fio engine for {url}")


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
