"""`playhead bookmark`."""

from __future__ import annotations

import click

from playhead.cli.client import Cli
from playhead.cli.reference import object_argument
from playhead.cli.show import Column, fields, output_option, show_json, table

COLUMNS: list[Column] = [("BOOKMARK", "path"), ("KIND", "kind"), ("LSN", "lsn"), ("TIME", "time")]


@click.group("bookmark")
def command() -> None:
    """Bookmarks: named points."""


@command.command("create")
@object_argument("bookmark")
@click.option("--application", is_flag=True, help="The application has been quiesced: mark it application-consistent.")
@output_option
@click.pass_obj
def create(cli: Cli, which: tuple[str, str], application: bool, as_json: bool) -> None:
    """Name this instant. It survives power loss when the command returns."""
    kind = "application" if application else "crash"
    bookmark = cli.post("groups", which[0], "bookmarks", body={"name": which[1], "kind": kind})
    if as_json:
        show_json(bookmark)
    else:
        fields([("bookmark", bookmark["path"]), ("kind", kind), ("lsn", bookmark["lsn"]), ("time", bookmark["time"])])


@command.command("list")
@click.argument("group")
@output_option
@click.pass_obj
def list_(cli: Cli, group: str, as_json: bool) -> None:
    """List a group's bookmarks, oldest first."""
    table(cli.get("groups", group, "bookmarks"), COLUMNS, as_json, "No bookmarks.")
