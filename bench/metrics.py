"""What the long-history program measured, and the goals it is held against.

The program prints one JSON object a line, {"metric": NAME, "value": NUMBER, "unit": UNIT}; a metric
measured several times is printed several times. Names that no goal needs are shown
all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.grid import grid
from bench.paths import MissingError
from bench.spread import Spread

Metrics = dict[str, list[float]]


@dataclass(frozen=True)
class HistoryGoal:
    """A bound on a value made of one or two metrics; `value` is called only when all of `needs`
    were measured.
    """

    title: str
    needs: tuple[str, ...]
    value: Callable[[Metrics], Spread]
    bound: float
    at_least: bool = False


def _plain(name: str) -> Callable[[Metrics], Spread]:
    return lambda metrics: Spread.of(metrics[name])


def _ratio(above: str, below: str) -> Callable[[Metrics], Spread]:
    def value(metrics: Metrics) -> Spread:
        pairs = [a / b for a, b in zip(metrics[above], metrics[below], strict=False)]
        middle = Spread.of(metrics[above]).median / Spread.of(metrics[below]).median
        return Spread(middle, min(pairs), max(pairs))

    return value


HISTORY_GOALS = (
    HistoryGoal("opening an image, ms", ("image_open",), _plain("image_open"), 50.0),
    HistoryGoal(
        "random 4 KiB reads of an image over the head's",
        ("image_read_rate", "head_read_rate"),
        _ratio("image_read_rate", "head_read_rate"),
        0.7,
        at_least=True,
    ),
    HistoryGoal("restart, s", ("restart",), _plain("restart"), 2.0),
    HistoryGoal(
        "index memory per 4 KiB block in the window, bytes",
        ("index_bytes_per_block",),
        _plain("index_bytes_per_block"),
        24.0,
    ),
)
# What the goals say they are measured on: writes of history, and bytes of journal at the restart.
WANTED_WRITES = 10_000_000
WANTED_JOURNAL_BYTES = 10_000_000_000


@dataclass
class HistoryResults:
    """All metrics of one call of the program, with what is needed to repeat it."""

    when: str
    command: str
    commit: str
    machine: dict[str, str]
    writes: int
    metrics: Metrics
    units: dict[str, str]

    def save(self, path: Path) -> None:
        """Writes the file in one piece."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=1) + "\n")
        fresh.replace(path)

    @staticmethod
    def load(path: Path) -> HistoryResults:
        """Reads what `save` wrote."""
        return HistoryResults(**json.loads(path.read_text()))

    def text(self) -> str:
        """The goals with their verdicts, then every metric, as Markdown."""
        head = grid(
            ("measured", f"{self.when}, commit {self.commit}"),
            [
                ("command", f"`{self.command}`"),
                ("history", f"{self.writes:,} random writes of 4 KiB"),
                *self.machine.items(),
            ],
        )
        rows = [
            (name, self.units[name], str(len(values)), Spread.of(values).text(2))
            for name, values in self.metrics.items()
        ]
        every = grid(("metric", "unit", "times", "median [least .. greatest]"), rows)
        return f"{head}\n{self.goals()}\n{every}"

    def goals(self) -> str:
        """One row a goal. A verdict on less than was wanted is marked, and a missing metric is said
        to be missing.
        """
        small = self.writes < WANTED_WRITES
        rows = []
        for goal in HISTORY_GOALS:
            wanted = f"{'>=' if goal.at_least else '<='} {goal.bound:g}"
            if any(not self.metrics.get(name) for name in goal.needs):
                rows.append((goal.title, wanted, "not measured", "MISS"))
                continue
            value = goal.value(self.metrics)
            good = value.median >= goal.bound if goal.at_least else value.median <= goal.bound
            journal = self.metrics.get("journal_bytes", [0.0])[-1]
            short = small or (goal.needs == ("restart",) and journal < WANTED_JOURNAL_BYTES)
            word = ("PASS" if good else "MISS") + (" (smaller than asked)" if short else "")
            rows.append((goal.title, wanted, value.text(2), word))
        return grid(("goal", "wanted", "measured", ""), rows)


def parse(lines: Iterable[str]) -> tuple[Metrics, dict[str, str]]:
    """Metrics and units by name, in the order printed. Lines that do not start an object are
    people's; they are passed over.
    """
    metrics: Metrics = {}
    units: dict[str, str] = {}
    for line in lines:
        if not line.startswith("{"):
            continue
        try:
            said = json.loads(line)
            name, value, unit = str(said["metric"]), float(said["value"]), str(said["unit"])
        except (ValueError, KeyError, TypeError) as error:
            raise MissingError(f"not a metric line: {line.strip()!r}") from error
        metrics.setdefault(name, []).append(value)
        units[name] = unit
    if not metrics:
        raise MissingError("the history program printed no metric")
    return metrics, units
