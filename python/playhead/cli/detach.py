"""`playhead detach`."""

from __future__ import annotations

import click

from playhead.cli.client import Cli
from playhead.cli.reference import object_argument
from playhead.cli.show import output_option, show_json


@click.command("detach")
@object_argument("volume")
@click.option(
    "--keep-history/--drop-history",
    "keep",
    default=None,
    help="Whether the volume stays, read-only, with its past, or goes.",
)
@output_option
@click.pass_obj
def command(cli: Cli, which: tuple[str, str], keep: bool | None, as_json: bool) -> None:
    """Let go of a volume's production, which is whole where it is and can be used without Playhead.

    Unmount the volume first.
    """
    if keep is None:
        raise click.UsageError(
            "say what becomes of the past: --keep-history or --drop-history", click.get_current_context()
        )
    group, name = which
    cli.post("groups", group, "volumes", name, "detach", body={"keep_history": keep})
    if as_json:
        show_json({"path": f"{group}/{name}", "history": "kept" if keep else "dropped"})
    else:
        click.echo(f"{group}/{name} is detached; its past is {'kept' if keep else 'dropped'}.")
