"""`playhead array`."""

from __future__ import annotations

from typing import Any

import click

from playhead.cli.client import Cli
from playhead.cli.secret import chap_body
from playhead.cli.show import Column, fields, output_option, show_json, size, table

COLUMNS: list[Column] = [
    ("ARRAY", "name"),
    ("PORTALS", "portals"),
    ("CHAP", "chap_user"),
    ("VOLUMES", "volumes"),
]
LUN_COLUMNS: list[Column] = [
    ("TARGET", "iqn"),
    ("LUN", "number"),
    ("SIZE", lambda lun: size(lun["size_bytes"])),
    ("PRODUCT", lambda lun: f"{lun['vendor']} {lun['product']}"),
    ("VOLUME", "volume"),
]


@click.group("array")
def command() -> None:
    """Arrays: other storage whose LUNs are protected (fabric-based splitter)."""


@command.command("add")
@click.argument("name")
@click.option(
    "--portal",
    "portals",
    multiple=True,
    required=True,
    metavar="ADDR[:PORT]",
    help="May be repeated: ways to it, best first.",
)
@click.option(
    "--names",
    type=click.Choice(["host", "own"]),
    default="host",
    show_default=True,
    help="Under whose name hosts' sessions log in to the array.",
)
@click.option("--digests", is_flag=True, help="Ask for CRC32C over headers and data.")
@click.option("--chap-user", metavar="USER", help="What Playhead calls itself in CHAP.")
@click.option(
    "--chap-secret-file", metavar="FILE", help="Its secret ('-': stdin). Without it: asked for, or read from stdin."
)
@click.option("--mutual-user", metavar="USER", help="Mutual CHAP: what the array calls itself.")
@click.option("--mutual-secret-file", metavar="FILE", help="The array's secret.")
@output_option
@click.pass_obj
def add(
    cli: Cli,
    name: str,
    portals: tuple[str, ...],
    names: str,
    digests: bool,
    chap_user: str | None,
    chap_secret_file: str | None,
    mutual_user: str | None,
    mutual_secret_file: str | None,
    as_json: bool,
) -> None:
    """Make an array known. Its targets and LUNs are shown by `playhead array show`."""
    body: dict[str, Any] = {"name": name, "portals": list(portals), "names": names, "digests": digests}
    if chap_user:
        body["chap"] = chap_body(chap_user, chap_secret_file, mutual_user, mutual_secret_file, none=False)
    elif chap_secret_file or mutual_user or mutual_secret_file:
        raise click.UsageError("credentials want --chap-user", click.get_current_context())
    _show(cli.post("arrays", body=body), as_json)


@command.command("list")
@output_option
@click.pass_obj
def list_(cli: Cli, as_json: bool) -> None:
    """List arrays."""
    table(
        cli.get("arrays"), COLUMNS, as_json, "No arrays. Make one known with `playhead array add NAME --portal ADDR`."
    )


@command.command("show")
@click.argument("name")
@output_option
@click.pass_obj
def show_(cli: Cli, name: str, as_json: bool) -> None:
    """Show an array with the targets and LUNs it has, asked just now."""
    array = cli.get("arrays", name)
    _show(array, as_json)
    if as_json:
        return
    click.echo()
    luns = [{**lun, "iqn": target["iqn"]} for target in array["targets"] for lun in target["luns"] if lun["is_disk"]]
    table(luns, LUN_COLUMNS, False, "It shows Playhead no disks.")
    for target in array["targets"]:
        if target["reason"]:
            click.echo(f"{target['iqn']}: {target['reason']}", err=True)


@command.command("remove")
@click.argument("name")
@output_option
@click.pass_obj
def remove(cli: Cli, name: str, as_json: bool) -> None:
    """Forget an array that no volume has its production on."""
    cli.delete("arrays", name)
    if as_json:
        show_json({"name": name})
    else:
        click.echo(f"Array {name} is forgotten.")


def _show(array: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(array)
        return
    chap = (
        array["chap_user"] and f"{array['chap_user']}, mutual as {array['mutual_user']}"
        if array["mutual_user"]
        else array["chap_user"]
    )
    fields(
        [
            ("array", array["name"]),
            ("portals", array["portals"]),
            ("logs in as", array["initiator"]),
            ("hosts' names", "the hosts' own" if array["names"] == "host" else "Playhead's"),
            ("digests", array["digests"]),
            ("chap", chap),
            ("volumes", array["volumes"]),
        ]
    )
