"""The matrix for people: on a terminal, and as docs/lab-vaai.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from playhead.lab.arrangement import Treatment
from playhead.lab.matrix import Measured, Outcome
from playhead.lab.operations import OPERATION_OF
from playhead.lab.settings import KIB, MIB
from playhead.lab.tools import Tooled

WORDS = Path(__file__).with_name("page.md")
HEAD = (
    "offload",
    "operation",
    "splitter",
    "switch",
    "outcome",
    "time",
    "commands",
    "on the wire",
    "records",
    "journal",
)


def size(count: int) -> str:
    """Bytes as people read them, exact while they are few."""
    if count < 10 * KIB:
        return f"{count} B"
    return f"{count / KIB:.0f} KiB" if count < 10 * MIB else f"{count / MIB:.1f} MiB"


def word(outcome: Outcome) -> str:
    """Outcomes that lose data are in capitals."""
    text = outcome.value.replace("-", " ")
    return text.upper() if outcome in (Outcome.CORRUPT, Outcome.WRONG) else text


def row(measured: Measured) -> tuple[str, ...]:
    """One cell."""
    cell = measured.cell
    head = (
        cell.primitive.value,
        OPERATION_OF[cell.primitive],
        cell.treatment.value,
        "on" if cell.switch else "off",
    )
    if measured.outcome is Outcome.IMPOSSIBLE:
        return (*head, "cannot be", "", "", "", "", "")
    outcome = word(measured.outcome)
    if measured.differing_blocks:
        outcome += f": {measured.differing_blocks} blocks"
    return (
        *head,
        outcome,
        f"{measured.seconds * 1e3:.0f} ms",
        str(measured.commands),
        size(measured.wire_bytes),
        str(measured.journal_records),
        size(measured.journal_bytes),
    )


def table(found: Sequence[Measured]) -> str:
    """Markdown, a table for each arrangement, and why cells of it cannot be."""
    parts = []
    for splitter, array in dict.fromkeys((each.cell.splitter, each.cell.array) for each in found):
        here = [each for each in found if (each.cell.splitter, each.cell.array) == (splitter, array)]
        # What cannot be is one line for each reason, not a row for each switch.
        rows = [row(each) for each in here if each.outcome is not Outcome.IMPOSSIBLE]
        parts.append(f"### {splitter}-based splitter: {array}\n\n{_markdown(HEAD, rows)}")
        reasons = dict.fromkeys(
            f"- {each.cell.primitive.value}, {each.cell.treatment.value}: {each.detail}."
            for each in here
            if each.outcome is Outcome.IMPOSSIBLE
        )
        if reasons:
            parts.append("Cells that cannot be:\n\n" + "\n".join(reasons))
    return "\n\n".join(parts)


def tools(found: Sequence[Tooled]) -> str:
    """Markdown of what other people's tools did."""
    head = ("tool", "offload", "splitter", "array", "outcome", "time", "journal", "carried out", "rejected")
    rows = [
        (
            each.tool,
            each.primitive.value,
            each.treatment.value,
            each.array,
            word(each.outcome) + (f": {each.differing_blocks} blocks" if each.differing_blocks else ""),
            f"{each.seconds * 1e3:.0f} ms",
            size(each.journal_bytes),
            "" if each.served is None else str(each.served),
            "" if each.rejected is None else str(each.rejected),
        )
        for each in found
    ]
    return _markdown(head, rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(found: Sequence[Measured]) -> str:
    """One line: how many cells, and what stands out."""
    corrupt = [each for each in found if each.outcome is Outcome.CORRUPT]
    ignored = [each for each in corrupt if each.cell.treatment is Treatment.IGNORE]
    odd = [each for each in found if not each.as_expected]
    cells = [each for each in found if each.outcome is not Outcome.IMPOSSIBLE]
    text = f"{len(cells)} cells, {len(found) - len(cells)} that cannot be; {len(corrupt)} corrupt, {len(ignored)} of them ignored by the splitter"
    return text + (f"; {len(odd)} NOT AS EXPECTED" if odd else "")


def write(
    path: Path, found: Sequence[Measured], tooled: Sequence[Tooled], left_out: Sequence[str], region_bytes: int
) -> None:
    """The page, words around figures of this run."""
    facts = f"{datetime.now(UTC):%Y-%m-%d}, {region_bytes // MIB} MiB, {os.cpu_count()} cores"
    text = WORDS.read_text()
    for name, value in (
        ("facts", facts),
        ("summary", summary(found)),
        ("table", table(found)),
        ("tools", tools(tooled)),
        ("left_out", "".join(f"\n\nNot run: {each}." for each in left_out)),
    ):
        text = text.replace("{" + name + "}", value)
    path.write_text(text)
