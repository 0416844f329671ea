"""`playhead target`."""

from __future__ import annotations

import click

from playhead.cli.client import Cli
from playhead.cli.show import output_option, show_json, size, table


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
        for disk in target["disks"]:
            mode = "read-only" if disk["read_only"] else "writable"
            click.echo(
                f"  LUN {disk['lun']:<3} {disk['path']}  {size(disk['size_bytes'])}  {mode}  {disk['nbd_url'] or ''}".rstrip()
            )
        for session in target["sessions"]:
            click.echo(f"  session from {session['peer']} over {session['protocol']}")


@command.command("sessions")
@output_option
@click.pass_obj
def sessions(cli: Cli, as_json: bool) -> None:
    """List every iSCSI session and NBD connection."""
    table(
        cli.get("sessions"),
        [("PROTOCOL", "protocol"), ("PEER", "peer"), ("ON", "name"), ("SINCE", lambda s: s["details"].get("since"))],
        as_json,
        "No sessions.",
    )
