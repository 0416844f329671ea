"""`playhead target`."""

from __future__ import annotations

from typing import Any

import click

from playhead.cli.client import Cli
from playhead.cli.secret import chap_body, chap_options
from playhead.cli.show import fields, output_option, show_json, size, table
from playhead.cli.volume import seen_by


@click.group("target")
def command() -> None:
    """What hosts see: targets, LUNs and sessions."""


@command.command("list")
@output_option
@click.pass_obj
def list_(cli: Cli, as_json: bool) -> None:
    """List targets with their LUNs and the sessions on them."""
    targets = cli.get("targets")
    if as_json:
        show_json(targets)
        return
    if not targets:
        click.echo("No targets.")
    for target in targets:
        click.echo(target["iqn"])
        redirection = target["redirection"]
        if redirection:
            kind = "permanently" if redirection["permanent"] else "for now"
            click.echo(f"  logins go to {redirection['address']} {kind}")
        for disk in target["disks"]:
            mode = "read-only" if disk["read_only"] else "writable"
            seen = "" if disk["hosts"] is None else f"{seen_by(disk)}  "
            click.echo(
                f"  LUN {disk['lun']:<3} {disk['path']}  {size(disk['size_bytes'])}  {mode}  {seen}{disk['nbd_url'] or ''}".rstrip()
            )
        for session in target["sessions"]:
            who = session["details"].get("initiator") or "?"
            name = f"{who} at {session['peer']}" if session["protocol"] == "iscsi" else session["peer"]
            click.echo(f"  session from {name} over {session['protocol']}")


@command.command("sessions")
@output_option
@click.pass_obj
def sessions(cli: Cli, as_json: bool) -> None:
    """List every iSCSI session and NBD connection."""
    table(
        cli.get("sessions"),
        [
            ("PROTOCOL", "protocol"),
            ("PEER", "peer"),
            ("INITIATOR", lambda s: s["details"].get("initiator")),
            ("ON", "name"),
            ("SINCE", lambda s: s["details"].get("since")),
        ],
        as_json,
        "No sessions.",
    )


@command.command("redirect")
@click.argument("iqn")
@click.argument("address", required=False, metavar="[ADDRESS:PORT]")
@click.option("--permanent", is_flag=True, help="Initiators may remember it.")
@click.option("--none", "none", is_flag=True, help="Serve them here again.")
@output_option
@click.pass_obj
def redirect(cli: Cli, iqn: str, address: str | None, permanent: bool, none: bool, as_json: bool) -> None:
    """Send those who log in to a target to another portal. Sessions that exist stay until they end."""
    if none == (address is not None) or (none and permanent):
        raise click.UsageError("give ADDRESS:PORT, or --none", click.get_current_context())
    if none:
        target = cli.delete("targets", iqn, "redirection")
    else:
        target = cli.put("targets", iqn, "redirection", body={"address": address, "permanent": permanent})
    if as_json:
        show_json(target)
        return
    redirection = target["redirection"]
    to = (
        f"{redirection['address']}, {'permanently' if redirection['permanent'] else 'for now'}" if redirection else None
    )
    fields([("target", iqn), ("redirected to", to), ("sessions here", len(target["sessions"]))])


@command.command("discovery-chap")
@chap_options
@output_option
@click.pass_obj
def discovery_chap(cli: Cli, /, as_json: bool, **given: Any) -> None:
    """Ask whoever wants to know which targets there are for these credentials (CHAP).

    The secret is typed unseen, or comes from a file or from stdin; it is never shown again.
    """
    body = chap_body(**given)
    found = cli.delete("discovery", "chap") if body is None else cli.put("discovery", "chap", body=body)
    if as_json:
        show_json(found)
        return
    chap = found["chap"]
    fields([("discovery as", chap and chap["user"]), ("target as", chap and chap["mutual_user"])])
