"""`playhead host`."""

from __future__ import annotations

from typing import Any

import click

from playhead.cli.client import Cli
from playhead.cli.reference import disk_argument
from playhead.cli.secret import chap_body, chap_options
from playhead.cli.show import Column, fields, output_option, show_json, table


def _chap(host: dict[str, Any]) -> str | None:
    chap = host["chap"]
    if chap is None:
        return None
    return f"{chap['user']}, mutual as {chap['mutual_user']}" if chap["mutual_user"] else str(chap["user"])


COLUMNS: list[Column] = [
    ("HOST", "name"),
    ("INITIATORS", "initiators"),
    ("CHAP", _chap),
    ("LUNS", lambda h: [mapping["path"] for mapping in h["mappings"]]),
]
MAPPING_COLUMNS: list[Column] = [
    ("LUN", "lun"),
    ("DISK", "path"),
    ("ACCESS", lambda m: "read-only" if m["read_only"] else "read-write"),
    ("ISCSI", "iscsi_url"),
]


@click.group("host")
def command() -> None:
    """Hosts: initiators, what they prove themselves with, and the LUNs mapped to them."""


@command.command("create")
@click.argument("name")
@click.option("--initiator", "initiators", multiple=True, metavar="IQN", help="One of its initiators; may be repeated.")
@output_option
@click.pass_obj
def create(cli: Cli, name: str, initiators: tuple[str, ...], as_json: bool) -> None:
    """Make a host of one or more initiators. A cluster that shares its LUNs may be one host."""
    show(cli.post("hosts", body={"name": name, "initiators": list(initiators)}), as_json)


@command.command("list")
@output_option
@click.pass_obj
def list_(cli: Cli, as_json: bool) -> None:
    """List hosts."""
    table(cli.get("hosts"), COLUMNS, as_json, "No hosts. Make one with `playhead host create NAME --initiator IQN`.")


@command.command("show")
@click.argument("name")
@output_option
@click.pass_obj
def show_(cli: Cli, name: str, as_json: bool) -> None:
    """Show a host and what is mapped to it."""
    show(cli.get("hosts", name), as_json)


@command.command("delete")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also one that has LUNs mapped to it.")
@output_option
@click.pass_obj
def delete(cli: Cli, name: str, force: bool, as_json: bool) -> None:
    """Forget a host, with its credentials and its offload rules."""
    _warned(cli.delete("hosts", name, force=force), f"Host {name} is deleted.", as_json)


@command.command("add-initiator")
@click.argument("name")
@click.argument("initiator", metavar="IQN")
@output_option
@click.pass_obj
def add_initiator(cli: Cli, name: str, initiator: str, as_json: bool) -> None:
    """Add an initiator. It sees at once what is mapped to the host."""
    show(cli.post("hosts", name, "initiators", body={"initiator": initiator}), as_json)


@command.command("remove-initiator")
@click.argument("name")
@click.argument("initiator", metavar="IQN")
@output_option
@click.pass_obj
def remove_initiator(cli: Cli, name: str, initiator: str, as_json: bool) -> None:
    """Take an initiator away. Its sessions lose at once what is mapped to the host."""
    show(cli.delete("hosts", name, "initiators", initiator), as_json)


@command.command("chap")
@click.argument("name")
@chap_options
@output_option
@click.pass_obj
def chap(cli: Cli, /, name: str, as_json: bool, **given: Any) -> None:
    """Set what the host's initiators prove themselves with (CHAP), from their next login on.

    The secret has 12 bytes or more (Windows takes 12 to 16). It is typed unseen, or comes from a file or from stdin; it is never shown again.
    """
    body = chap_body(**given)
    show(cli.delete("hosts", name, "chap") if body is None else cli.put("hosts", name, "chap", body=body), as_json)


@command.command("map")
@click.argument("name", metavar="HOST")
@disk_argument()
@click.option("--lun", type=click.IntRange(0, 255), help="Under which number. [default: its own, if that is free]")
@click.option("--read-only", is_flag=True, help="This host may only read it.")
@output_option
@click.pass_obj
def map_(cli: Cli, name: str, path: str, lun: int | None, read_only: bool, as_json: bool) -> None:
    """Map a LUN to a host. From now on only hosts it is mapped to see it, and NBD clients do not.

    Mapping it again changes number and access.
    """
    mapping = cli.post("hosts", name, "mappings", body={"path": path, "lun": lun, "read_only": read_only})
    if as_json:
        show_json(mapping)
        return
    fields(
        [
            ("disk", mapping["path"]),
            ("host", mapping["host"]),
            ("lun", mapping["lun"]),
            ("access", "read-only" if mapping["read_only"] else "read-write"),
            ("iscsi", mapping["iscsi_url"]),
        ]
    )


@command.command("unmap")
@click.argument("name", metavar="HOST")
@disk_argument()
@output_option
@click.pass_obj
def unmap(cli: Cli, name: str, path: str, as_json: bool) -> None:
    """Take a LUN from a host. Its sessions lose it at once."""
    _warned(cli.delete("hosts", name, "mappings", path=path), f"{path} is not mapped to {name} any longer.", as_json)


def _warned(result: dict[str, Any], done: str, as_json: bool) -> None:
    if as_json:
        show_json(result)
        return
    click.echo(done)
    for warning in result["warnings"]:
        click.echo(f"Warning: {warning}.", err=True)


def show(host: dict[str, Any], as_json: bool) -> None:
    """One host."""
    if as_json:
        show_json(host)
        return
    fields([("host", host["name"]), ("initiators", host["initiators"]), ("chap", _chap(host))])
    click.echo()
    table(host["mappings"], MAPPING_COLUMNS, False, "Nothing is mapped to it.")
