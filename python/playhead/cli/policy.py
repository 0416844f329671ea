"""`playhead policy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from playhead.cli.client import Cli
from playhead.cli.reference import disk_argument, disk_option
from playhead.cli.show import Column, output_option, show_json, size, table
from playhead.policy import OFFLOADS, check_action, check_offload

F = TypeVar("F", bound=Callable[..., Any])

RULE_COLUMNS: list[Column] = [("SCOPE", "scope"), ("OFFLOAD", "offload"), ("RULE", "action")]
IN_FORCE_COLUMNS: list[Column] = [
    ("OFFLOAD", "offload"),
    ("IN FORCE", "action"),
    ("DECIDED BY", lambda o: o["rule"]["scope"] if o["rule"] else "default"),
    ("SERVED", "served"),
    ("REJECTED", "rejected"),
    ("SAVED", lambda o: size(o["saved_bytes"])),
]


@click.group("policy")
def command() -> None:
    """Which offloads hosts get: ats, xcopy, write-same, unmap, odx.

    Each is supported or rejected; the narrowest rule decides: LUN and initiator, LUN and host, LUN, initiator, host, appliance. Without any, it is
    supported. A change reaches hosts at once.
    """


def who_options(command: F) -> F:
    """`--initiator IQN` or `--host NAME`."""
    command = click.option("--host", metavar="NAME", help="For the initiators of this host.")(command)
    return click.option("--initiator", metavar="IQN", help="For this initiator.")(command)


def scope_options(command: F) -> F:
    """The scope of rules; nothing given is the appliance."""
    return disk_option("--lun", "For this LUN: GROUP/VOLUME, or GROUP/IMAGE/VOLUME.")(who_options(command))


def _scope(lun: str | None, initiator: str | None, host: str | None) -> dict[str, str]:
    if initiator is not None and host is not None:
        raise click.UsageError("give --initiator or --host, not both", click.get_current_context())
    given = {"lun": lun, "initiator": initiator, "host": host}
    return {key: value for key, value in given.items() if value is not None}


@command.command("show")
@disk_argument(required=False)
@who_options
@output_option
@click.pass_obj
def show(cli: Cli, path: str | None, initiator: str | None, host: str | None, as_json: bool) -> None:
    """Show what is in force, and which rule decides it: for everybody, or at a LUN, for an initiator or a host.

    Without any of them the rules are listed too.
    """
    scope = _scope(path, initiator, host)
    in_force = cli.get("policy", "in-force", **scope)
    if as_json:
        show_json(in_force if scope else {"rules": cli.get("policy")["rules"], "in_force": in_force})
        return
    table(in_force["offloads"], IN_FORCE_COLUMNS, False)
    if not scope:
        click.echo()
        table(cli.get("policy")["rules"], RULE_COLUMNS, False, "No rules: every offload is supported.")


@command.command("set")
@click.argument("decisions", nargs=-1, required=True, metavar="OFFLOAD=support|reject...")
@scope_options
@output_option
@click.pass_obj
def set_(
    cli: Cli, decisions: tuple[str, ...], lun: str | None, initiator: str | None, host: str | None, as_json: bool
) -> None:
    """Support or reject offloads, for the whole appliance or at a narrower scope. The other rules stay."""
    offloads = {}
    for decision in decisions:
        offload, equals, action = decision.partition("=")
        if not equals:
            raise click.UsageError(
                f"{decision!r} is not OFFLOAD=support or OFFLOAD=reject", click.get_current_context()
            )
        offloads[check_offload(offload)] = check_action(offload, action)
    scope = _scope(lun, initiator, host)
    _after(cli, cli.patch("policy", body={**scope, "offloads": offloads}), scope, as_json)


@command.command("reset")
@click.argument("offloads", nargs=-1, type=click.Choice(OFFLOADS), metavar="[OFFLOAD]...")
@scope_options
@click.option("--all", "everywhere", is_flag=True, help="Drop the rules of every scope.")
@output_option
@click.pass_obj
def reset(
    cli: Cli,
    offloads: tuple[str, ...],
    lun: str | None,
    initiator: str | None,
    host: str | None,
    everywhere: bool,
    as_json: bool,
) -> None:
    """Drop the rules at one scope (none given: the appliance's own), so that wider ones decide again."""
    scope = _scope(lun, initiator, host)
    if everywhere and scope:
        raise click.UsageError("--all is every scope: leave the others out", click.get_current_context())
    query = {**scope, "everywhere": everywhere, "offload": list(offloads)}
    _after(cli, cli.delete("policy", **query), scope, as_json)


def _after(cli: Cli, policy: dict[str, Any], scope: dict[str, str], as_json: bool) -> None:
    """What holds at the scope now."""
    if as_json:
        show_json(policy)
        return
    columns = [column for column in IN_FORCE_COLUMNS if column[0] in ("OFFLOAD", "IN FORCE", "DECIDED BY")]
    table(cli.get("policy", "in-force", **scope)["offloads"], columns, False)
