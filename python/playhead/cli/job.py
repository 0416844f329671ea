"""`playhead job`."""

from __future__ import annotations

from typing import Any

import click

from playhead.cli.client import Cli
from playhead.cli.show import Column, fields, output_option, show_json, size, table

COLUMNS: list[Column] = [
    ("JOB", "id"),
    ("KIND", "kind"),
    ("OBJECT", "object"),
    ("STATE", "state"),
    ("DONE", lambda j: f"{size(j['done_bytes'])} of {size(j['total_bytes'])}" if j["total_bytes"] else "-"),
    ("STARTED", "started"),
]


@click.group("job")
def command() -> None:
    """Jobs: long work of the service."""


@command.command("list")
@output_option
@click.pass_obj
def list_(cli: Cli, as_json: bool) -> None:
    """List jobs since the service started."""
    table(cli.get("jobs"), COLUMNS, as_json, "No jobs.")


@command.command("show")
@click.argument("job")
@output_option
@click.pass_obj
def show(cli: Cli, job: str, as_json: bool) -> None:
    """Show a job."""
    _show(cli.get("jobs", job), as_json)


@command.command("cancel")
@click.argument("job")
@output_option
@click.pass_obj
def cancel(cli: Cli, job: str, as_json: bool) -> None:
    """Ask a job to stop. What it did so far stays valid."""
    _show(cli.delete("jobs", job), as_json)


def _show(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(job)
        return
    pairs = [(title.lower(), get(job) if callable(get) else job[get]) for title, get in COLUMNS]
    fields([*pairs, ("finished", job["finished"]), ("problem", (job["problem"] or {}).get("detail"))])
