"""`playhead status`."""

from __future__ import annotations

import click

from playhead.cli.client import Cli
from playhead.cli.group import COLUMNS
from playhead.cli.show import fields, output_option, show_json, size, table


@click.command("status")
@output_option
@click.pass_obj
def command(cli: Cli, as_json: bool) -> None:
    """One page: groups, windows, lag, space, sessions, alerts."""
    status = cli.get("status")
    if as_json:
        show_json(status)
        return
    service = status["service"]
    running = [job for job in status["jobs"] if job["state"] == "running"]
    fields(
        [
            ("playhead", f"{service['version']}, process {service['pid']}, since {service['started']}"),
            (
                "store",
                f"{service['store']}, {size(service['store_free_bytes'])} free of {size(service['store_size_bytes'])}",
            ),
            ("iscsi", ", ".join(service["iscsi_portals"]) or "off"),
            ("nbd", service["nbd"] or "off"),
            ("api", service["api"]),
            ("sessions", len(status["sessions"])),
            ("jobs", [f"{job['kind']} of {job['object']} ({job['id']})" for job in running]),
        ]
    )
    click.echo()
    table(status["groups"], COLUMNS, False, "No groups. Make one with `playhead group create NAME`.")
    for alert in status["alerts"]:
        click.echo(f"\nALERT: {alert}")
