"""Runs libiscsi's iscsi-test-cu against a target and compares what happened with what is expected.

The suite runs family by family, each with a time limit. What did not end cleanly there, because a test hung, fell over or left the next
ones without a session, runs again test by test, so that a hang costs one test and has a name. CUnit says "passed" of a test that only
printed "[SKIPPED]"; here such a test is "skipped".

As a program: ``python3 -m tests.conformance.iscsi_test_cu URL [FAMILY[.TEST]...]`` runs the newest suite against one LUN, prints every
outcome that is not the expected one and exits with 1 if there is any. The LUN loses its data. ``ISCSI_TEST_CU=installed`` chooses the
machine's own suite, ``ISCSI_TEST_CU_KEEP=DIR`` leaves the suite's output there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .places import Place, Target, place
from .suites import Suite, SuiteError, installed, newest

EXPECTATIONS = Path(__file__).with_name("expectations.toml")
FAMILY_LIMIT_S = 60.0
"""Seconds a family may take before what it has not done counts as not run."""
TEST_LIMIT_S = 30.0
"""Seconds a single test may take before it counts as hung."""
HUGE_LIMIT_S = 240.0
"""The same for a test of the huge LUN."""

_TEST = re.compile(r"^\s*Test: (\S+) \.\.\.")
# What the suite prints after a test, about reservations, may follow on the verdict's line.
_VERDICT = re.compile(r"(?:^|\.\.\.\s*)(passed|FAILED)\b")
# Asserts within a test that do run but ask nothing of this LUN: limits it does not have.
_NOTHING_TO_ASK = ("Skipping assert", "No alignment restrictions", "No granularity restrictions")
# A test before this one has ended the session for good.
_NO_SESSION = "Not an iSCSI device"


@dataclass(frozen=True)
class Expected:
    """What a test that does not pass comes to."""

    outcome: str
    reason: str


def parse(family: str, output: str, ended: bool) -> dict[str, str]:
    """Outcomes by test name, of one run's output.

    The test that was running when the output ended without ``ended`` is "hung"; if the program itself ended there, "crashed". A test that
    found no session because an earlier one had ended it is not among them.
    """
    outcomes: dict[str, str] = {}
    test: str | None = None
    said = ""
    for line in output.splitlines():
        if found := _TEST.match(line):
            test, said = f"{family}.{found[1]}", ""
        if test is None:
            continue
        if not any(words in line for words in _NOTHING_TO_ASK):
            said += line
        if verdict := _VERDICT.search(line):
            if verdict[1] == "FAILED":
                outcomes[test] = "failed"
            elif _NO_SESSION not in said:
                outcomes[test] = "skipped" if "[SKIPPED]" in said else "passed"
            test = None
    if test is not None:
        outcomes[test] = "crashed" if ended else "hung"
    return outcomes


class Run:
    """One run of a suite against a target."""

    def __init__(self, suite: Suite, target: Target, keep: Path | None = None, patience: float = 1.0) -> None:
        self.suite = suite
        self.target = target
        self.patience = patience
        """How many times as long as usual everything may take, on a target that is slow."""
        self.keep = keep
        """A directory for the suite's output, if it is wanted."""

    def all(self, chosen: Iterable[str] = ()) -> dict[str, str]:
        """Runs everything, or the families and tests ``chosen``. Returns test name -> passed, failed, skipped, hung or crashed."""
        wanted = set(chosen)
        families = {}
        for family, names in self.suite.tests().items():
            tests = [f"{family}.{name}" for name in names]
            families[family] = [test for test in tests if not wanted or wanted & {family, test}]
        # What takes minutes has a target of its own and runs beside the rest.
        long = [test for tests in families.values() for test in tests if place(test, self.suite.version) is Place.HUGE]
        outcomes: dict[str, str] = {}
        with ThreadPoolExecutor(1) as pool:
            beside = [(test, pool.submit(self._alone, test)) for test in long]
            for family, tests in families.items():
                outcomes |= self.family(family, [test for test in tests if test not in long])
            outcomes |= {test: outcome.result() for test, outcome in beside}
        return outcomes

    def family(self, family: str, tests: list[str]) -> dict[str, str]:
        """Runs ``tests`` of one family: at one go if they are all it has and run in one place, then singly what did not end cleanly."""
        outcomes: dict[str, str] = {}
        places = {place(test, self.suite.version) for test in tests}
        if len(tests) == len(self.suite.tests()[family]) and len(places) == 1:
            found = self._start(family, places.pop(), FAMILY_LIMIT_S)
            outcomes = {test: outcome for test, outcome in found.items() if outcome not in {"hung", "crashed"}}
        return {test: outcomes.get(test) or self._alone(test) for test in tests}

    def _alone(self, test: str) -> str:
        where = place(test, self.suite.version)
        outcomes = self._start(test, where, HUGE_LIMIT_S if where is Place.HUGE else TEST_LIMIT_S)
        # Nothing at all: it could not even log in.
        return outcomes.get(test, "crashed")

    def _start(self, name: str, where: Place, limit_s: float) -> dict[str, str]:
        # Verbose: some tests say only there that they skip.
        arguments = [
            "--Verbose-scsi",
            "--dataloss",
            "--allow-sanitize",
            "-t",
            f"ALL.{name}",
            *self.target.arguments(where),
        ]
        command = ["stdbuf", "-oL", *self.suite.command, *arguments]
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            try:
                process.wait(limit_s * self.patience)
                ended = True
            except subprocess.TimeoutExpired:
                ended = False
                process.kill()
                process.wait()
            output.seek(0)
            text = output.read()
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / f"{name}.txt").write_text(text)
        return parse(name.partition(".")[0], text, ended)


def expectations(suite_version: str, path: Path = EXPECTATIONS) -> dict[str, Expected]:
    """Test name -> what it comes to instead of passing, with the suite of this version."""
    with path.open("rb") as file:
        tests = tomllib.load(file)["tests"]
    found = {}
    for family, members in tests.items():
        for name, entry in members.items():
            if suite_version.startswith(entry.get("suite", "")):
                found[f"{family}.{name}"] = Expected(entry["outcome"], entry["reason"])
    return found


def differences(outcomes: dict[str, str], expected: dict[str, Expected]) -> list[str]:
    """One line for every outcome that is not the expected one. A test that is not in ``expected`` must pass."""
    lines = []
    for name, outcome in sorted(outcomes.items()):
        wanted = expected[name].outcome if name in expected else "passed"
        if outcome != wanted:
            lines.append(f"{name}: {outcome}, expected {wanted}")
    return lines


def summary(outcomes: dict[str, str]) -> str:
    """How many tests came to what: "200 passed, 30 skipped"."""
    found = list(outcomes.values())
    return ", ".join(f"{found.count(kind)} {kind}" for kind in sorted(set(found)))


class _OneUrl:
    """A LUN that is every place at once."""

    name = "the LUN"

    def __init__(self, url: str) -> None:
        self._url = url

    def arguments(self, place: Place) -> list[str]:
        return [self._url] * (2 if place is Place.TWO_PORTALS else 1)


def main(arguments: list[str]) -> int:
    """The program."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        suite = installed() if os.environ.get("ISCSI_TEST_CU") == "installed" else newest()
    except SuiteError as error:
        print(f"iscsi_test_cu: {error}", file=sys.stderr)
        return 2
    if suite is None:
        print("iscsi_test_cu: iscsi-test-cu is not installed", file=sys.stderr)
        return 2
    keep = os.environ.get("ISCSI_TEST_CU_KEEP")
    outcomes = Run(suite, _OneUrl(arguments[0]), Path(keep) if keep else None).all(arguments[1:])
    print(f"libiscsi {suite.version}: {summary(outcomes)}")
    lines = differences(outcomes, expectations(suite.version))
    print("\n".join(lines) if lines else "as expected")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
