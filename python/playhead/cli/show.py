"""How results are shown: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from playhead.cli import refusal
from playhead.errors import EXIT_PROBLEMS_FOUND
from playhead.sizes import show_size, show_span_ns

F = TypeVar("F", bound=Callable[..., Any])
Column = tuple[str, str | Callable[[dict[str, Any]], Any]]


def _chosen(_ctx: click.Context, _parameter: click.Parameter, value: str) -> bool:
    refusal.wants_json = value == "json"
    return refusal.wants_json


def output_option(command: F) -> F:
    """`-o table|json`, as the parameter `as_json`."""
    return click.option(
        "-o",
        "--output",
        "as_json",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        is_eager=True,
        callback=_chosen,
        help="For people or for programs.",
    )(command)


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def table(rows: Sequence[dict[str, Any]], columns: Sequence[Column], as_json: bool, empty: str = "None.") -> None:
    """Rows as a table, or as they are in JSON."""
    if as_json:
        show_json(list(rows))
        return
    if not rows:
        click.echo(empty)
        return
    cells = [[title for title, _ in columns]]
    cells += [[_cell(row[get] if isinstance(get, str) else get(row)) for _, get in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_verdict(ctx: click.Context, found: Any, as_json: bool, summary: str, problems: Sequence[str]) -> None:
    """What a check has found; exit code 12 if there is a problem."""
    if as_json:
        show_json(found)
    else:
        click.echo("\n  ".join([summary, *problems]))
    if problems:
        ctx.exit(EXIT_PROBLEMS_FOUND)


def fields(pairs: Sequence[tuple[str, Any]]) -> None:
    """One object, a line per property."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name.ljust(width)}  {_cell(value)}")


def _cell(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "".join(c if c.isprintable() else "?" for c in str(value))


def size(value: int | None) -> str:
    return "-" if value is None else show_size(value)


def policy(value: dict[str, Any]) -> str:
    """`24h, 100 GiB`."""
    window = show_span_ns(value["window_ns"]) if value["window_ns"] is not None else "any time"
    limit = show_size(value["limit_bytes"]) if value["limit_bytes"] is not None else "any size"
    return f"{window}, {limit}"


def span(window: dict[str, Any] | None) -> str:
    """How far back a window reaches."""
    from playhead.point import parse_time_ns

    if window is None:
        return "-"
    edge, head = parse_time_ns(window["edge"]["time"]), parse_time_ns(window["head"]["time"])
    return show_span_ns(max(0, head - edge)) if edge and head else "-"
