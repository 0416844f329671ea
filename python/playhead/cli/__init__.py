"""The command line: `playhead NOUN VERB`, over the REST API. docs/cli.md is its page; one file per noun."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from playhead.cli.client import Cli
from playhead.cli.refusal import exit_with

# Loaded when used: `playhead group head` in a loop should not pay for the web server.
NOUNS = {
    "serve": "Run the appliance in the foreground.",
    "status": "One page: groups, windows, lag, space, sessions, alerts.",
    "volume": "Volumes: create, adopt, list, show, set, resync, delete.",
    "attach": "Protect a file or block device of this host where it is.",
    "detach": "Let go of a protected file or block device.",
    "group": "Consistency groups: create, list, show, head, rewind, undo, settle, policy, retry, delete.",
    "bookmark": "Bookmarks: create, list.",
    "point": "Points: show what an expression stands for.",
    "image": "Images of the past: open, list, show, close.",
    "copy": "Copies on other disks: add, list, show, set, pause, resume, verify, promote, remove.",
    "journal": "Journals: show, dump, verify, trim.",
    "target": "What hosts see: list, sessions, redirect, discovery-chap.",
    "host": "Hosts: create, list, show, delete, add-initiator, remove-initiator, chap, map, unmap.",
    "array": "Other arrays whose LUNs are protected: add, list, show, remove.",
    "policy": "Offload policy (VAAI, ODX): show, set, reset.",
    "job": "Long work: list, show, cancel.",
    "lab": "The interoperability laboratory: probe, vaai.",
}


class Nouns(click.Group):
    """Commands that are imported when they are used."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(NOUNS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS:
            return None
        command: Any = importlib.import_module(f"playhead.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Nouns"):
            formatter.write_dl(list(NOUNS.items()))


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from playhead import _native

        click.echo(f"playhead {_native.version()}")
        ctx.exit()


@click.group(cls=Nouns, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--api", metavar="ADDR:PORT", envvar="PLAYHEAD_API", help="Where the service is. [default: 127.0.0.1:7480]"
)
@click.option(
    "--token-file",
    metavar="FILE",
    envvar="PLAYHEAD_TOKEN_FILE",
    type=click.Path(),
    help="File with the service's token.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def cli(ctx: click.Context, api: str | None, token_file: str | None) -> None:
    """Playhead: every write to a LUN is kept in order; mount or rewind to any of them.

    Points are written as an LSN, an RFC 3339 time, a span back from now (-5m), a bookmark's name, 'head' or 'edge'. An object of a group is
    written GROUP/NAME. Exit codes: `docs/cli.md`.
    """
    ctx.obj = Cli(api, token_file)


def main() -> None:
    """The program."""
    try:
        # What a command returns is nothing, or the code it exited with on purpose.
        exit_code = cli.main(prog_name="playhead", standalone_mode=False)
    except Exception as error:  # noqa: BLE001 - the last resort: one line for people, an exit code for programs
        sys.exit(exit_with(error))
    sys.exit(exit_code or 0)
