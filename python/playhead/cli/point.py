"""`playhead point`."""

from __future__ import annotations

import click

from playhead.cli.client import Cli
from playhead.cli.show import output_option, show_json


@click.group("point")
def command() -> None:
    """Points: the instants of a group."""


# An argument such as -5m must not be taken for options, nor the h of -2h for a cry for help.
@command.command("show", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("group")
@click.argument("at", required=False)
@click.option("--at", "at_option", metavar="POINT", help="The same, as an option.")
@output_option
@click.pass_obj
def show(cli: Cli, group: str, at: str | None, at_option: str | None, as_json: bool) -> None:
    """Show what a point expression stands for: AT is an LSN, an RFC 3339 time, -5m, a bookmark, 'head' or 'edge'."""
    point = cli.get("groups", group, "point", at=at_option or at or "head")
    if as_json:
        show_json(point)
    else:
        click.echo(f"{point['lsn']}  {point['time']}")
