"""Runs both editions of libiscsi's suite against Playhead and against tgtd, and writes docs/conformance.md from what happened.

``python3 -m tests.conformance.table`` exits with 1 if Playhead comes to anything else than the expectations file says.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.appliance import Appliance

from . import tgtd
from .iscsi_test_cu import Expected, Run, differences, expectations, summary
from .places import DEFECTS, WANTED
from .playhead import TWO_PORTALS, PlayheadTarget
from .suites import REPOSITORY, Suite, installed, newest_or_none
from .tgtd import TgtdTarget

PAGE = REPOSITORY / "docs" / "conformance.md"
NOT_RUN = ("hung", "crashed")

Outcomes = dict[str, str]
"""Test name -> outcome."""

INTRODUCTION = """\
# Conformance: libiscsi's suite, and tgtd beside it

`make conformance` writes this page. It runs libiscsi's `iscsi-test-cu`, in the newest edition Debian has and in the one of its stable release,
with `--dataloss` and `--allow-sanitize`, against `playhead serve` and against tgtd ({tgtd}, a thin LUN over a file, as its manual has it).
`make test` runs both editions against Playhead and fails if any test comes to something else than `tests/conformance/expectations.toml` says.

A test that says anywhere that it skips counts as skipped, though the suite itself calls it passed. One that hangs or falls over counts as failed.
"""


def run_suites(suites: list[Suite], against: Callable[[int, Suite], Outcomes]) -> list[Outcomes]:
    """Runs all suites at once, each against what `against` sets up for it. They wait for half of their time."""
    with ThreadPoolExecutor(len(suites)) as pool:
        return list(pool.map(against, range(len(suites)), suites))


def against_playhead(suites: list[Suite]) -> list[Outcomes]:
    """The suites against a service of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="conformance-") as folder,
        Appliance(Path(folder) / "store", *TWO_PORTALS) as appliance,
    ):
        return run_suites(suites, lambda number, suite: Run(suite, PlayheadTarget(appliance, f"suite{number}")).all())


def against_tgtd(suites: list[Suite]) -> list[Outcomes]:
    """The suites against a tgtd each."""

    def run(number: int, suite: Suite) -> Outcomes:
        with TgtdTarget() as target:
            return Run(suite, target).all()

    return run_suites(suites, run)


def counts(outcomes: Outcomes) -> tuple[int, int, int]:
    """Passed, failed, skipped."""
    found = Counter(outcomes.values())
    return found["passed"], found["failed"] + sum(found[kind] for kind in NOT_RUN), found["skipped"]


def of_family(outcomes: Outcomes, family: str) -> Outcomes:
    """The outcomes of one family."""
    return {test: outcome for test, outcome in outcomes.items() if test.partition(".")[0] == family}


def table(suite: Suite, ours: Outcomes, theirs: Outcomes) -> list[str]:
    """The table of one suite, family by family."""
    lines = [
        f"## libiscsi {suite.version}: {len(ours)} tests",
        "",
        "| family | Playhead: passed | failed | skipped | tgtd: passed | failed | skipped |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines.append(row("**all**", ours, theirs))
    lines += [row(family, of_family(ours, family), of_family(theirs, family)) for family in suite.tests()]
    return [*lines, ""]


def row(name: str, ours: Outcomes, theirs: Outcomes) -> str:
    """One line of the table; zeros are left empty."""
    cells = [str(count) if count else "" for count in (*counts(ours), *counts(theirs))]
    return f"| {name} | {' | '.join(cells)} |"


def reasons(outcomes: list[Outcomes], expected: list[dict[str, Expected]]) -> list[str]:
    """What Playhead does not pass, and why, by reason."""
    by_reason: dict[str, set[str]] = {}
    for found, known in zip(outcomes, expected, strict=True):
        for test, outcome in found.items():
            if outcome != "passed":
                reason = f"{outcome}: {known[test].reason if test in known else 'not expected'}"
                by_reason.setdefault(reason, set()).add(test)
    return [
        f"- {reason}: {', '.join(f'`{test}`' for test in sorted(tests))}" for reason, tests in sorted(by_reason.items())
    ]


def failures(outcomes: list[Outcomes]) -> str:
    """The tests that failed, hung or crashed in any of the runs."""
    failed = {
        f"`{test}`" + (f" ({outcome})" if outcome in NOT_RUN else "")
        for found in outcomes
        for test, outcome in found.items()
        if outcome not in {"passed", "skipped"}
    }
    return ", ".join(sorted(failed)) or "none"


def page(suites: list[Suite], ours: list[Outcomes], theirs: list[Outcomes]) -> str:
    """The whole page."""
    lines = [INTRODUCTION.format(tgtd=tgtd.version())]
    for suite, own, other in zip(suites, ours, theirs, strict=True):
        lines += table(suite, own, other)
    lines += ["## What Playhead does not pass, and why", ""]
    lines += reasons(ours, [expectations(suite.version) for suite in suites]) or ["Nothing."]
    lines += [
        "",
        "## Tests that no right answer satisfies",
        "",
        "They run, for both targets, where the suite itself skips them.",
        "",
    ]
    lines += [
        f"- `{test}`" + (f" (of {version})" if version else "") + f": {why}. Runs on {where.value}."
        for (version, test), (where, why) in DEFECTS.items()
    ]
    lines += ["", "## What tgtd fails", "", failures(theirs), ""]
    lines += [
        "## Where the tests run",
        "",
        "Most run on a thin LUN of 1 GiB with 512-byte blocks in physical blocks of 4 KiB. For both targets:",
        "",
    ]
    lines += [f"- `{name}`: {where.value}" for name, where in WANTED.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The program."""
    suites = [suite for suite in (newest_or_none(), installed()) if suite is not None]
    if not suites:
        print("conformance: iscsi-test-cu is neither installed nor to be had: run make setup", file=sys.stderr)
        return 2
    ours = against_playhead(suites)
    theirs = against_tgtd(suites)
    PAGE.write_text(page(suites, ours, theirs))
    wrong = 0
    for suite, own, other in zip(suites, ours, theirs, strict=True):
        print(f"libiscsi {suite.version}: Playhead: {summary(own)}; tgtd: {summary(other)}")
        for line in differences(own, expectations(suite.version)):
            print(f"  {line}")
            wrong += 1
    print(f"{PAGE.relative_to(REPOSITORY)} written")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
