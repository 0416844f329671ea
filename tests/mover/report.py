"""The table of what each case cost, for people and for docs/data-mover.md."""

from __future__ import annotations

from tests.mover.lab import Measured

from playhead.lab.device import Claim
from playhead.lab.settings import KIB, MIB

HEAD = ("operation", "host", "policy", "done by", "time", "commands", "on the wire", "records", "journal", "blocks")


def size(count: int) -> str:
    """Bytes as people read them."""
    if count < 10 * KIB:
        return f"{count} B"
    return f"{count / KIB:.0f} KiB" if count < 10 * MIB else f"{count / MIB:.1f} MiB"


def row(measured: Measured) -> tuple[str, ...]:
    """One case."""
    case = measured.case
    offloaded = case.offloaded and measured.claim is Claim.SUPPORTED
    pieces = (
        "" if case.settings.max_hw_transfer_kib == 4096 else f", {case.settings.max_hw_transfer_kib // KIB} MiB pieces"
    )
    return (
        case.operation,
        ("on" if case.switch else "off") + pieces,
        f"{case.primitive.value}: {case.policy}",
        "array" if offloaded else "nobody" if case.operation == "reclaim" else "host",
        f"{measured.seconds * 1e3:.0f} ms",
        str(measured.commands),
        size(measured.wire_bytes),
        str(measured.records),
        size(measured.journal_bytes),
        f"{measured.content}{'' if measured.right else ' WRONG'}",
    )


def table(found: list[Measured]) -> str:
    """Markdown."""
    lines = [" | ".join(HEAD), " | ".join("---" for _ in HEAD), *(" | ".join(row(measured)) for measured in found)]
    return "\n".join(f"| {line} |" for line in lines)
