"""What runs measured, as one JSON file, and the verdicts drawn from it."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.load import Sample
from bench.scenarios import GOALS, SCENARIOS, Goal
from bench.spread import Spread


@dataclass
class Results:
    """All samples of one call, with what is needed to judge and to repeat them."""

    when: str
    command: str
    commit: str
    machine: dict[str, str]
    settings: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    # "scenario/lane: what went wrong", in the order it happened.
    failures: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes the file in one piece."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=1) + "\n")
        fresh.replace(path)

    @staticmethod
    def load(path: Path) -> Results:
        """Reads what `save` wrote."""
        raw = json.loads(path.read_text())
        raw["samples"] = [Sample(**sample) for sample in raw["samples"]]
        return Results(**raw)

    def of(self, scenario: str, lane: str) -> list[Sample]:
        """The samples of one cell of the table, by round."""
        return [s for s in self.samples if s.scenario == scenario and s.lane == lane]


@dataclass(frozen=True)
class Verdict:
    """A goal held against the samples. `ratio.median` is a ratio of medians; its low and high are
    of single rounds.
    """

    goal: Goal
    best: str
    ratio: Spread

    @property
    def word(self) -> str:
        """PASS or MISS; a dash for a ratio that nobody set a bound for."""
        if self.goal.bound is None:
            return "-"
        good = (
            self.ratio.median >= self.goal.bound
            if self.goal.at_least
            else self.ratio.median <= self.goal.bound
        )
        return "PASS" if good else "MISS"


def figure(sample: Sample, name: str) -> float:
    """A sample's figure: "rate" in its scenario's unit, or the name of a field."""
    if name == "rate":
        scenario = next(s for s in SCENARIOS if s.name == sample.scenario)
        return sample.iops if scenario.unit == "IOPS" else sample.mib_per_second
    value = getattr(sample, name)
    return float(value)


def verdicts(results: Results) -> list[Verdict]:
    """Every goal whose lanes were all measured, in the order of `GOALS`."""
    found = []
    for goal in GOALS:
        ours = _by_round(results, goal, goal.lane)
        theirs = {lane: _by_round(results, goal, lane) for lane in goal.against}
        if not ours or not all(theirs.values()):
            continue
        medians = {lane: statistics.median(rates.values()) for lane, rates in theirs.items()}
        best = (max if goal.at_least else min)(medians, key=medians.__getitem__)
        shared = ours.keys() & theirs[best].keys()
        if not shared or not all(theirs[best][round_] for round_ in shared):
            continue
        single = [ours[round_] / theirs[best][round_] for round_ in shared]
        middle = statistics.median(ours.values()) / medians[best]
        found.append(Verdict(goal, best, Spread(middle, min(single), max(single))))
    return found


def _by_round(results: Results, goal: Goal, lane: str) -> dict[int, float]:
    return {s.round: figure(s, goal.figure) for s in results.of(goal.scenario, lane)}
