"""`playhead image`."""

from __future__ import annotations

from typing import Any

import click

from playhead.cli.client import Cli
from playhead.cli.reference import object_argument
from playhead.cli.show import Column, fields, output_option, show_json, size, table

COLUMNS: list[Column] = [
    ("IMAGE", "path"),
    ("LSN", lambda i: i["point"]["lsn"]),
    ("TIME", lambda i: i["point"]["time"]),
    ("WRITABLE", "writable"),
    ("VOLUMES", lambda i: len(i["volumes"])),
    ("TARGET", "iqn"),
]


@click.group("image")
def command() -> None:
    """Images: a group's volumes as of one point, mounted like volumes."""


@command.command("open")
@object_argument("image")
@click.option("--at", default="head", show_default=True, metavar="POINT", help="LSN, time, -5m, or bookmark.")
@click.option("--writable", is_flag=True, help="It takes writes of its own; history stays as it is.")
@click.option("--force", is_flag=True, help="Also of a moment at which a volume was being resynchronised.")
@click.option("--copy", metavar="COPY", help="Read it from this copy of the group, and write it there.")
@output_option
@click.pass_obj
def open_(
    cli: Cli, which: tuple[str, str], at: str, writable: bool, force: bool, copy: str | None, as_json: bool
) -> None:
    """Open an image of a moment and export each of its volumes. It stays, over restarts too, until closed."""
    body = {"name": which[1], "at": at, "writable": writable, "force": force, "copy_name": copy}
    show(cli.post("groups", which[0], "images", body=body), as_json)


@command.command("list")
@click.argument("group", required=False)
@output_option
@click.pass_obj
def list_(cli: Cli, group: str | None, as_json: bool) -> None:
    """List open images, of one GROUP or of all."""
    table(cli.get("groups", group, "images") if group else cli.get("images"), COLUMNS, as_json, "No images.")


@command.command("show")
@object_argument("image")
@output_option
@click.pass_obj
def show_(cli: Cli, which: tuple[str, str], as_json: bool) -> None:
    """Show an image and how to reach its volumes."""
    show(cli.get("groups", which[0], "images", which[1]), as_json)


@command.command("close")
@object_argument("image")
@output_option
@click.pass_obj
def close(cli: Cli, which: tuple[str, str], as_json: bool) -> None:
    """Close an image. What was written to a writable one is discarded."""
    cli.delete("groups", which[0], "images", which[1])
    if as_json:
        show_json({"path": "/".join(which)})
    else:
        click.echo(f"Image {'/'.join(which)} is closed.")


def show(image: dict[str, Any], as_json: bool) -> None:
    """One image."""
    if as_json:
        show_json(image)
        return
    fields(
        [
            ("image", image["path"]),
            ("point", f"{image['point']['lsn']}  {image['point']['time']}"),
            ("writable", image["writable"]),
            ("copy", image["copy_name"]),
            ("scratch", None if image["scratch_bytes"] is None else size(image["scratch_bytes"])),
            ("alert", image["alert"]),
            ("target", image["iqn"]),
        ]
    )
    click.echo()
    columns: list[Column] = [
        ("VOLUME", "name"),
        ("SIZE", lambda v: size(v["size_bytes"])),
        ("ISCSI", "iscsi_url"),
        ("NBD", "nbd_url"),
    ]
    table(image["volumes"], columns, as_json, "The group had no volumes then.")
