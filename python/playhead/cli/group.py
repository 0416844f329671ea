"""`playhead group`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from playhead.cli import wait
from playhead.cli.client import Cli
from playhead.cli.show import Column, fields, output_option, policy, show_json, size, span, table
from playhead.sizes import parse_size, parse_span_ns

F = TypeVar("F", bound=Callable[..., Any])

COLUMNS: list[Column] = [
    ("GROUP", "name"),
    ("STATE", "state"),
    ("VOLUMES", lambda g: len(g["volumes"])),
    ("IMAGES", lambda g: len(g["images"])),
    ("WINDOW", lambda g: span(g["window"])),
    ("POLICY", lambda g: policy(g["policy"])),
    ("JOURNAL", lambda g: size(g["journal_bytes"])),
    ("LAG", lambda g: size(g["lag_bytes"])),
    ("ALERT", lambda g: g["reason"] or g["alert"]),
]


@click.group("group")
def command() -> None:
    """Consistency groups: volumes that share one write order, one journal and one past."""


window_option = click.option(
    "--window", metavar="SPAN", help="Keep the past of this long (24h, 7d), or 'none' for no limit of time."
)
limit_option = click.option(
    "--limit", metavar="SIZE", help="Keep the journal below this size (100G), or 'none' for no limit."
)


def limits(window: str | None, limit: str | None) -> dict[str, Any]:
    """How much past is kept, as the API wants it: `none` lifts a limit; what is not given is not said."""
    said: dict[str, Any] = {}
    if window is not None:
        said["window_ns"] = None if window == "none" else parse_span_ns(window)
    if limit is not None:
        said["limit_bytes"] = None if limit == "none" else parse_size(limit)
    return said


def policy_options(command: F) -> F:
    """All of a group's policy; the command takes them as `**given`, for `_policy`."""
    command = click.option(
        "--on-journal-failure",
        "on_failure",
        type=click.Choice(["stop", "track"]),
        help="Attached volumes, while the journal cannot be written: stop hosts, or go on and resynchronise later.",
    )(command)
    command = click.option(
        "--reserve", metavar="SIZE", help="Keep so much journal allocated ahead of need; makes flushes faster."
    )(command)
    return window_option(limit_option(command))


def _policy(given: dict[str, str | None]) -> dict[str, Any]:
    """What is not given is not said."""
    said = limits(given["window"], given["limit"])
    if (reserve := given["reserve"]) is not None:
        said["reserve_bytes"] = parse_size(reserve)
    if (on_failure := given["on_failure"]) is not None:
        said["on_journal_failure"] = on_failure
    return said


@command.command("create")
@click.argument("name")
@policy_options
@output_option
@click.pass_obj
def create(cli: Cli, /, name: str, as_json: bool, **given: str | None) -> None:
    """Make a new, empty group."""
    show(cli.post("groups", body={"name": name, "policy": _policy(given)}), as_json)


@command.command("list")
@output_option
@click.pass_obj
def list_(cli: Cli, as_json: bool) -> None:
    """List groups."""
    table(cli.get("groups"), COLUMNS, as_json, "No groups. Make one with `playhead group create NAME`.")


@command.command("show")
@click.argument("name")
@output_option
@click.pass_obj
def show_(cli: Cli, name: str, as_json: bool) -> None:
    """Show a group."""
    show(cli.get("groups", name), as_json)


@command.command("head")
@click.argument("name")
@output_option
@click.pass_obj
def head(cli: Cli, name: str, as_json: bool) -> None:
    """Show the newest point, all acknowledged writes included."""
    point = cli.get("groups", name, "head")
    if as_json:
        show_json(point)
    else:
        click.echo(f"{point['lsn']}  {point['time']}")


@command.command("delete")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also a group that is not in service; its journal is lost.")
@output_option
@click.pass_obj
def delete(cli: Cli, name: str, force: bool, as_json: bool) -> None:
    """Remove a group that has no volumes left, with its journal."""
    cli.delete("groups", name, force=force)
    if as_json:
        show_json({"name": name})
    else:
        click.echo(f"Group {name} is deleted.")


@command.command("rewind")
@click.argument("name")
@click.option("--to", required=True, metavar="POINT", help="LSN, time, -5m, or bookmark.")
@output_option
@click.pass_obj
def rewind(cli: Cli, name: str, to: str, as_json: bool) -> None:
    """Take production back to a point. No data moves, nothing is lost, and `undo` undoes it."""
    _rewound(cli.post("groups", name, "rewind", body={"to": to}), as_json)


@command.command("undo")
@click.argument("name")
@output_option
@click.pass_obj
def undo(cli: Cli, name: str, as_json: bool) -> None:
    """Undo the last rewind: production is again what it was before it."""
    _rewound(cli.post("groups", name, "undo"), as_json)


@command.command("rewinds")
@click.argument("name")
@output_option
@click.pass_obj
def rewinds(cli: Cli, name: str, as_json: bool) -> None:
    """List rewinds that the window still holds."""
    columns: list[Column] = [
        ("DONE", lambda r: r["at"]["time"]),
        ("TO LSN", lambda r: r["to"]["lsn"]),
        ("TO TIME", lambda r: r["to"]["time"]),
        ("UNDO LSN", "undo_lsn"),
    ]
    table(cli.get("groups", name, "rewinds"), columns, as_json, "No rewinds.")


def _rewound(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(result)
        return
    click.echo(
        f"Production of {result['group']} is at LSN {result['to']['lsn']} ({result['to']['time']}); undo goes to LSN {result['undo_lsn']}."
    )
    for warning in result["warnings"]:
        click.echo(f"Warning: {warning}.", err=True)


@command.command("settle")
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Return at once; follow it with `playhead job show`.")
@output_option
@click.pass_obj
def settle(cli: Cli, name: str, no_wait: bool, as_json: bool) -> None:
    """Bring the bases up to date, so that the plain files alone are the current data. The past is given up."""
    wait.follow(cli, cli.post("groups", name, "settle"), no_wait, as_json)


@command.command("policy")
@click.argument("name")
@policy_options
@output_option
@click.pass_obj
def policy_(cli: Cli, /, name: str, as_json: bool, **given: str | None) -> None:
    """Show or change how much past is kept."""
    group = cli.get("groups", name)
    if changes := _policy(given):
        group = cli.put("groups", name, "policy", body=group["policy"] | changes)
    if as_json:
        show_json(group["policy"])
    else:
        fields(
            [
                ("policy", policy(group["policy"])),
                ("window now", span(group["window"])),
                ("journal now", size(group["journal_bytes"])),
            ]
        )


@command.command("window")
@click.argument("name")
@output_option
@click.pass_obj
def window(cli: Cli, name: str, as_json: bool) -> None:
    """Show what can be restored: every point from the edge to the head."""
    found = cli.get("groups", name, "journal")["window"]
    if as_json:
        show_json(found)
    else:
        fields([(end, f"{found[end]['lsn']}  {found[end]['time']}") for end in ("edge", "head")])


@command.command("retry")
@click.argument("name")
@output_option
@click.pass_obj
def retry(cli: Cli, name: str, as_json: bool) -> None:
    """Open a failed group again, once what it failed for is put right."""
    show(cli.post("groups", name, "retry"), as_json)


def show(group: dict[str, Any], as_json: bool) -> None:
    """One group."""
    if as_json:
        show_json(group)
        return
    pairs: list[tuple[str, Any]] = [("group", group["name"]), ("state", group["state"]), ("target", group["iqn"])]
    if group["state"] == "failed":
        pairs += [("reason", group["reason"]), ("next step", group["next_step"])]
    else:
        window = group["window"]
        pairs += [
            ("volumes", group["volumes"]),
            ("images", group["images"]),
            ("bookmarks", group["bookmark_count"]),
            ("edge", f"{window['edge']['lsn']}  {window['edge']['time']}"),
            ("head", f"{window['head']['lsn']}  {window['head']['time']}"),
            ("journal", size(group["journal_bytes"])),
            ("lag", size(group["lag_bytes"])),
            ("alert", group["alert"]),
        ]
    fields([*pairs, ("policy", policy(group["policy"]))])
