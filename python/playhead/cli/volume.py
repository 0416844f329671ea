"""`playhead volume`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from playhead.cli.client import Cli
from playhead.cli.reference import object_argument
from playhead.cli.show import Column, fields, output_option, show_json, size, table
from playhead.sizes import parse_size, show_span_ns

COLUMNS: list[Column] = [
    ("VOLUME", "path"),
    ("SIZE", lambda v: size(v["size_bytes"])),
    ("STATE", lambda v: splitter_state(v["splitter"])),
    ("LUN", "lun"),
    ("ISCSI", "iscsi_url"),
    ("NBD", "nbd_url"),
]


def splitter_state(splitter: dict[str, Any] | None) -> str:
    """`array`, or of which kind it is and how it stands: `host, resynchronising 40%`."""
    if splitter is None:
        return "array"
    total, done = splitter["resync_total_bytes"], splitter["resync_done_bytes"]
    progress = f" {done * 100 // total}%" if total else ""
    return f"{splitter['kind']}, {splitter['state']}{progress}"


physical_block_option = click.option(
    "--physical-block",
    type=click.Choice(["512", "4096"]),
    default="4096",
    show_default=True,
    help="Bytes that hosts are told are a physical block; 512 for hosts that want native blocks.",
)


@click.group("volume")
def command() -> None:
    """Volumes: protected LUNs of a group."""


@command.command("create")
@object_argument("volume")
@click.option("--size", "size_text", metavar="SIZE", help="Like 10G or 64T, or bytes; up to 64 TiB.")
@click.option("--array", metavar="NAME", help="Production stays on this array (`playhead array add`).")
@click.option("--target", metavar="IQN", help="The array's target.")
@click.option("--lun", type=click.IntRange(0, 16383), help="The LUN of that target.")
@click.option(
    "--identity",
    type=click.Choice(["own", "new"]),
    default="own",
    show_default=True,
    help="Of an array's LUN: whether hosts find it under its own names, or as a new disk.",
)
@physical_block_option
@output_option
@click.pass_obj
def create(
    cli: Cli,
    which: tuple[str, str],
    size_text: str | None,
    array: str | None,
    target: str | None,
    lun: int | None,
    identity: str,
    physical_block: str,
    as_json: bool,
) -> None:
    """Make a new volume. With --size it reads as zeros and takes no space until written.

    With --array, --target and --lun it follows a LUN of another array: hosts use that through Playhead from now on.
    """
    group, name = which
    context = click.get_current_context()
    if array is not None:
        if size_text is not None or target is None or lun is None:
            raise click.UsageError("--array wants --target and --lun, and no --size", context)
        fabric = {"array": array, "target": target, "lun": lun, "identity": identity}
        show(cli.post("groups", group, "volumes", body={"name": name, "fabric": fabric}), as_json)
        return
    if size_text is None:
        raise click.UsageError("give --size, or --array, --target and --lun", context)
    body: dict[str, Any] = {
        "name": name,
        "size_bytes": parse_size(size_text),
        "physical_block_bytes": int(physical_block),
    }
    show(cli.post("groups", group, "volumes", body=body), as_json)


@command.command("adopt")
@object_argument("volume")
@click.option("--path", required=True, type=click.Path(), help="Raw image or block device on the appliance.")
@physical_block_option
@output_option
@click.pass_obj
def adopt(cli: Cli, which: tuple[str, str], path: str, physical_block: str, as_json: bool) -> None:
    """Take over an existing raw image or block device in place: its blocks are the volume's."""
    group, name = which
    # Not resolved: a link such as /dev/disk/by-id/… names the device better than what it points to today.
    absolute = str(Path(path).absolute())
    body = {"name": name, "adopt_path": absolute, "physical_block_bytes": int(physical_block)}
    show(cli.post("groups", group, "volumes", body=body), as_json)


@command.command("list")
@click.argument("group", required=False)
@output_option
@click.pass_obj
def list_(cli: Cli, group: str | None, as_json: bool) -> None:
    """List volumes, of one GROUP or of all."""
    table(cli.get("groups", group, "volumes") if group else cli.get("volumes"), COLUMNS, as_json, "No volumes.")


@command.command("show")
@object_argument("volume")
@output_option
@click.pass_obj
def show_(cli: Cli, which: tuple[str, str], as_json: bool) -> None:
    """Show a volume and how to reach it."""
    show(cli.get("groups", which[0], "volumes", which[1]), as_json)


@command.command("set")
@object_argument("volume")
@click.option("--read-only/--writable", "read_only", default=None, help="Whether hosts may only read it.")
@click.option("--ublk/--no-ublk", default=None, help="Whether it is a block device of this host too: /dev/ublkbN.")
@output_option
@click.pass_obj
def set_(cli: Cli, which: tuple[str, str], read_only: bool | None, ublk: bool | None, as_json: bool) -> None:
    """Write-protect a volume for every host, or let them write again; make it a block device of this host, or no longer.

    Unmount it first: what hosts still have to write to a volume that becomes read-only is refused.
    """
    wanted = {"read_only": read_only, "ublk": ublk}
    body = {key: value for key, value in wanted.items() if value is not None}
    if not body:
        raise click.UsageError(
            "say what is to change: --read-only, --writable, --ublk or --no-ublk", click.get_current_context()
        )
    show(cli.patch("groups", which[0], "volumes", which[1], body=body), as_json)


@command.command("resync")
@object_argument("volume")
@output_option
@click.pass_obj
def resync(cli: Cli, which: tuple[str, str], as_json: bool) -> None:
    """Compare all of a volume with its production elsewhere, while hosts work; what differs is recorded.

    For when somebody has changed production without Playhead.
    """
    show(cli.post("groups", which[0], "volumes", which[1], "resync"), as_json)


@command.command("delete")
@object_argument("volume")
@click.option(
    "--keep-base/--delete-base",
    "keep",
    default=None,
    help="What becomes of the base. Settle first to keep it up to date.",
)
@output_option
@click.pass_obj
def delete(cli: Cli, which: tuple[str, str], keep: bool | None, as_json: bool) -> None:
    """Take a volume, and its past, out of its group.

    A kept base holds the blocks as of the trailing edge; after `playhead group settle` that is the current data.
    """
    if keep is None:
        raise click.UsageError(
            "say what becomes of the base: --keep-base or --delete-base", click.get_current_context()
        )
    group, name = which
    cli.delete("groups", group, "volumes", name, delete_base=not keep)
    if as_json:
        show_json({"path": f"{group}/{name}", "base": "kept" if keep else "deleted"})
    else:
        click.echo(f"Volume {group}/{name} is deleted; its base is {'kept' if keep else 'deleted'}.")


def seen_by(disk: dict[str, Any]) -> str:
    """The hosts that see a disk, for people."""
    if disk["hosts"] is None:
        return "every initiator"
    return f"host {', '.join(disk['hosts'])}" if disk["hosts"] else "nobody (unmapped_volumes = hidden)"


def block_device(ublk: dict[str, Any] | None) -> str | None:
    """Where this host has a volume, and why what is asked of it waits if it does."""
    if ublk is None:
        return None
    return str(ublk["device"]) + ("" if ublk["serving"] else f", waiting: {ublk['reason']}")


def show(volume: dict[str, Any], as_json: bool) -> None:
    """One volume."""
    if as_json:
        show_json(volume)
        return
    fields(
        [
            ("volume", volume["path"]),
            ("size", f"{size(volume['size_bytes'])} ({volume['size_bytes']} bytes)"),
            ("iscsi", volume["iscsi_url"]),
            ("nbd", volume["nbd_url"]),
            ("ublk", block_device(volume["ublk"])),
            ("access", "read-only" if volume["read_only"] else "read-write"),
            ("seen by", seen_by(volume)),
            ("physical block", f"{volume['physical_block_bytes']} bytes"),
            ("base", volume["base"]),
            ("adopted", volume["adopted"]),
            ("uuid", volume["uuid"]),
            *splitter_fields(volume["splitter"]),
        ]
    )


def splitter_fields(splitter: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """How a volume stands to its production."""
    if splitter is None:
        return [("splitter", "array")]
    lag_s = splitter["lag_s"]
    lag = f"{size(splitter['lag_bytes'])}, since {show_span_ns(int(lag_s * 1e9))}" if lag_s is not None else "none"
    return [
        ("splitter", splitter_state(splitter)),
        ("production", splitter["production"]),
        ("lag", lag),
        ("reason", splitter["reason"]),
        ("marked", f"{size(splitter['marked_bytes'])} to compare after a crash now"),
        *_fabric_fields(splitter["fabric"]),
    ]


def _fabric_fields(fabric: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """What there is to say only of a LUN of another array."""
    if fabric is None:
        return []
    paths = [
        f"{path['initiator']} by {path['portal']}: {path['state']}" + (f" ({path['reason']})" if path["reason"] else "")
        for path in fabric["paths"]
    ]
    return [("identity", fabric["identity"]), ("paths", paths)]
