"""`playhead copy`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from playhead.cli import wait
from playhead.cli.client import Cli
from playhead.cli.group import limit_option, limits, window_option
from playhead.cli.reference import object_argument
from playhead.cli.show import Column, fields, output_option, show_json, show_verdict, size, span, table


def _lag(copy: dict[str, Any]) -> str:
    if copy["lag_bytes"] is None:
        return "-"
    return f"{size(copy['lag_bytes'])}, {copy['lag_s'] or 0:.1f} s"


def _progress(copy: dict[str, Any]) -> str | None:
    if copy["left_bytes"] is None:
        return None
    done = copy["total_bytes"] - copy["left_bytes"]
    return f"{size(done)} of {size(copy['total_bytes'])} looked at, {size(copy['moved_bytes'])} moved"


COLUMNS: list[Column] = [
    ("COPY", "path"),
    ("STATE", "state"),
    ("LAG", _lag),
    ("WINDOW", lambda c: span(c["window"])),
    ("PROGRESS", _progress),
    ("DIRECTORY", "directory"),
]


@click.group("copy")
def command() -> None:
    """Copies: a second base and journal of a group, on another disk, moments behind production."""


@command.command("add")
@object_argument("copy")
@click.option("--directory", required=True, metavar="PATH", help="Where it goes: a directory on another disk.")
@window_option
@limit_option
@output_option
@click.pass_obj
def add(cli: Cli, which: tuple[str, str], directory: str, window: str | None, limit: str | None, as_json: bool) -> None:
    """Add a copy. It is synchronised while hosts write, and follows production from then on."""
    body = {"name": which[1], "directory": str(Path(directory).absolute()), **limits(window, limit)}
    show(cli.post("groups", which[0], "copies", body=body), as_json)


@command.command("list")
@click.argument("group", required=False)
@output_option
@click.pass_obj
def list_(cli: Cli, group: str | None, as_json: bool) -> None:
    """List copies with their state and lag, of one GROUP or of all."""
    table(cli.get("groups", group, "copies") if group else cli.get("copies"), COLUMNS, as_json, "No copies.")


@command.command("show")
@object_argument("copy")
@output_option
@click.pass_obj
def show_(cli: Cli, which: tuple[str, str], as_json: bool) -> None:
    """Show a copy."""
    show(cli.get("groups", which[0], "copies", which[1]), as_json)


@command.command("set")
@object_argument("copy")
@window_option
@limit_option
@output_option
@click.pass_obj
def set_(cli: Cli, which: tuple[str, str], window: str | None, limit: str | None, as_json: bool) -> None:
    """Change how much past a copy keeps."""
    show(cli.patch("groups", which[0], "copies", which[1], body=limits(window, limit)), as_json)


@command.command("pause")
@object_argument("copy")
@output_option
@click.pass_obj
def pause(cli: Cli, which: tuple[str, str], as_json: bool) -> None:
    """Have a copy take nothing until it is resumed. It holds nothing on production meanwhile."""
    show(cli.patch("groups", which[0], "copies", which[1], body={"paused": True}), as_json)


@command.command("resume")
@object_argument("copy")
@output_option
@click.pass_obj
def resume(cli: Cli, which: tuple[str, str], as_json: bool) -> None:
    """Have a paused copy go on: by the log, or by what changed if the log no longer reaches back."""
    show(cli.patch("groups", which[0], "copies", which[1], body={"paused": False}), as_json)


@command.command("verify")
@object_argument("copy")
@click.option("--no-wait", is_flag=True, help="Return at once; follow it with `playhead job show`.")
@output_option
@click.pass_context
def verify(ctx: click.Context, which: tuple[str, str], no_wait: bool, as_json: bool) -> None:
    """Compare a copy with production at one point. Exit code 12 if they differ."""
    cli: Cli = ctx.obj
    started = cli.post("groups", which[0], "copies", which[1], "verify")
    if no_wait:
        wait.follow(cli, started, no_wait, as_json)
        return
    found = wait.result(cli, started)
    summary = (
        f"{found['copy']} at LSN {found['point']['lsn']}: {size(found['hashed_bytes'])} of {size(found['total_bytes'])} hashed, "
        f"{found['differing_blocks']} block(s) differ."
    )
    differences = [f"volume {d['volume']}: {d['count']} block(s) from LBA {d['lba']}" for d in found["differences"]]
    show_verdict(ctx, found, as_json, summary, differences)


@command.command("promote")
@object_argument("copy")
@click.option(
    "--while-serving", is_flag=True, help="Also while production is in service: its hosts are taken to the copy."
)
@click.option(
    "--allow-inconsistent",
    is_flag=True,
    help="Also if its newest points lie where a volume was being resynchronised with its production.",
)
@output_option
@click.pass_obj
def promote(cli: Cli, which: tuple[str, str], while_serving: bool, allow_inconsistent: bool, as_json: bool) -> None:
    """Make a copy production. Hosts find the same targets, LUN numbers and identities."""
    body = {"while_serving": while_serving, "allow_inconsistent": allow_inconsistent}
    group = cli.post("groups", which[0], "copies", which[1], "promote", body=body)
    if as_json:
        show_json(group)
    else:
        click.echo(f"Copy {'/'.join(which)} is production of {group['name']}, at LSN {group['window']['head']['lsn']}.")


@command.command("remove")
@object_argument("copy")
@click.option("--delete-data", is_flag=True, help="Also delete its directory.")
@output_option
@click.pass_obj
def remove(cli: Cli, which: tuple[str, str], delete_data: bool, as_json: bool) -> None:
    """End a copy. Its files stay, unless told otherwise."""
    cli.delete("groups", which[0], "copies", which[1], delete_data=delete_data)
    if as_json:
        show_json({"path": "/".join(which)})
    else:
        click.echo(f"Copy {'/'.join(which)} is removed.")


def show(copy: dict[str, Any], as_json: bool) -> None:
    """One copy."""
    if as_json:
        show_json(copy)
        return
    window = copy["window"]
    fields(
        [
            ("copy", copy["path"]),
            ("state", f"{copy['state']}, since {copy['since']}"),
            ("reason", copy["reason"]),
            ("consistent", copy["consistent"]),
            ("lag", _lag(copy)),
            ("progress", _progress(copy)),
            ("edge", f"{window['edge']['lsn']}  {window['edge']['time']}" if window else None),
            ("head", f"{window['head']['lsn']}  {window['head']['time']}" if window else None),
            ("journal", size(copy["journal_bytes"])),
            ("images", copy["images"]),
            ("directory", copy["directory"]),
            ("free", size(copy["free_bytes"])),
            ("alert", copy["alert"]),
        ]
    )
