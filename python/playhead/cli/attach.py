"""`playhead attach`."""

from __future__ import annotations

from pathlib import Path

import click

from playhead.cli.client import Cli
from playhead.cli.reference import object_argument
from playhead.cli.show import output_option
from playhead.cli.volume import physical_block_option, show


@click.command("attach")
@object_argument("volume")
@click.argument("path", type=click.Path())
@physical_block_option
@click.option(
    "--on-journal-failure",
    type=click.Choice(["stop", "track"]),
    help="The group's choice: stop hosts, or let production go on and resynchronise later. [default: as it is]",
)
@click.option("--ublk", is_flag=True, help="Serve it to this host as a block device, /dev/ublkbN.")
@output_option
@click.pass_obj
def command(
    cli: Cli,
    which: tuple[str, str],
    path: str,
    physical_block: str,
    on_journal_failure: str | None,
    ublk: bool,
    as_json: bool,
) -> None:
    """Protect a file or block device where it is: GROUP/VOLUME becomes its replica, and it is used through the volume's URL.

    Unmount it first. A volume whose production was lost is attached again, there or elsewhere. What --ublk does can be done later too,
    with `playhead volume set --ublk`.
    """
    group, name = which
    if on_journal_failure is not None:
        policy = cli.get("groups", group)["policy"] | {"on_journal_failure": on_journal_failure}
        cli.put("groups", group, "policy", body=policy)
    # Not resolved: a link such as /dev/disk/by-id/… names the device better than what it points to today.
    body = {"path": str(Path(path).absolute()), "physical_block_bytes": int(physical_block)}
    volume = cli.post("groups", group, "volumes", name, "attach", body=body)
    if ublk:
        volume = cli.patch("groups", group, "volumes", name, body={"ublk": True})
    show(volume, as_json)
