"""Runs libiscsi's iscsi-test-cu against a LUN and compares what happened with what is expected.

The suite runs family by family, each with a time limit, so that a hang costs one family's rest and has a name. CUnit says
"passed" of a test that only printed "[SKIPPED]"; here such a test is "skipped".

As a program: ``iscsi_test_cu.py URL [FAMILY...]`` prints every outcome that is not the expected one and exits with 1 if there is any.
The LUN loses its data.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

EXPECTATIONS = Path(__file__).with_name("expectations.toml")
FAMILY_LIMIT_S = 120.0
"""Seconds one family may take before it counts as hung."""
SECOND_PATH = {"MultipathIO"}
"""Families that want the LUN's URL twice, as two paths to it."""

_FAMILY = re.compile(r"^ALL\.([A-Za-z0-9]+)$", re.MULTILINE)
_TEST = re.compile(r"^\s*Test: (\S+) \.\.\.")
# What the suite prints after a test, about reservations, may follow on the verdict's line.
_VERDICT = re.compile(r"(?:^|\.\.\.\s*)(passed|FAILED)\b")


def families() -> list[str]:
    """Names of the families this machine's iscsi-test-cu has."""
    listing = subprocess.run(["iscsi-test-cu", "--list"], capture_output=True, text=True, check=False)
    return _FAMILY.findall(listing.stdout + listing.stderr)


def parse(family: str, output: str, ended: bool) -> dict[str, str]:
    """Outcomes by test name, of one family's output.

    The test that was running when the output ended without ``ended`` is "hung"; if the program itself ended there, "crashed".
    """
    outcomes: dict[str, str] = {}
    test: str | None = None
    skipped = False
    for line in output.splitlines():
        if found := _TEST.match(line):
            test, skipped = f"{family}.{found[1]}", False
        if test is None:
            continue
        skipped |= "[SKIPPED]" in line
        if verdict := _VERDICT.search(line):
            outcomes[test] = "failed" if verdict[1] == "FAILED" else "skipped" if skipped else "passed"
            test = None
    if test is not None:
        outcomes[test] = "crashed" if ended else "hung"
    return outcomes


def run_family(url: str, family: str, limit_s: float = FAMILY_LIMIT_S) -> tuple[dict[str, str], str]:
    """Runs one family. Returns its outcomes and the whole output."""
    urls = [url, url] if family in SECOND_PATH else [url]
    command = ["stdbuf", "-oL", "iscsi-test-cu", "--dataloss", "--allow-sanitize", "-t", f"ALL.{family}", *urls]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            process.wait(limit_s)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
            process.kill()
            process.wait()
        output.seek(0)
        text = output.read()
    outcomes = parse(family, text, ended)
    if not outcomes:
        # It could not even start: no login, no LUN.
        outcomes[f"{family}.*"] = "crashed" if ended else "hung"
    return outcomes, text


def run(url: str, families: Iterable[str] | None = None, *, keep: Path | None = None) -> dict[str, str]:
    """Runs the suite, or the ``families`` named, and returns test name -> passed, failed, skipped, hung or crashed.

    With ``keep``, every family's output is left in that directory.
    """
    chosen = list(families) if families is not None else globals()["families"]()
    outcomes: dict[str, str] = {}
    for family in chosen:
        of_family, text = run_family(url, family)
        outcomes |= of_family
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{family}.txt").write_text(text)
    return outcomes


def expectations(path: Path = EXPECTATIONS) -> dict[str, str]:
    """Test name -> expected outcome."""
    with path.open("rb") as file:
        tests = tomllib.load(file)["tests"]
    return {
        f"{family}.{name}": outcome if isinstance(outcome, str) else outcome["outcome"]
        for family, members in tests.items()
        for name, outcome in members.items()
    }


def differences(outcomes: dict[str, str], expected: dict[str, str]) -> list[str]:
    """One line for every outcome that is not the expected one. Tests nobody knows yet must pass or be skipped."""
    lines = []
    for name, outcome in sorted(outcomes.items()):
        wanted = expected.get(name)
        if wanted is None and outcome not in {"passed", "skipped"}:
            lines.append(f"{name}: {outcome}, and nothing is expected of it")
        elif wanted is not None and outcome != wanted:
            lines.append(f"{name}: {outcome}, expected {wanted}")
    seen = {name.partition(".")[0] for name in outcomes}
    for name in sorted(expected.keys() - outcomes.keys()):
        if name.partition(".")[0] in seen:
            lines.append(f"{name}: did not run, expected {expected[name]}")
    return lines


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    keep = os.environ.get("ISCSI_TEST_CU_KEEP")
    outcomes = run(arguments[0], arguments[1:] or None, keep=Path(keep) if keep else None)
    counts = {kind: list(outcomes.values()).count(kind) for kind in sorted(set(outcomes.values()))}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    lines = differences(outcomes, expectations() if EXPECTATIONS.exists() else {})
    print("\n".join(lines) if lines else "as expected")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
