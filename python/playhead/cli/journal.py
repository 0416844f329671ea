"""`playhead journal`: over a running service, or on the files of a stopped one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from playhead.cli import wait
from playhead.cli.client import Cli
from playhead.cli.show import fields, output_option, show_json, show_verdict, size
from playhead.errors import PlayheadError
from playhead.point import show_time

PAGE = 10_000

store_option = click.option(
    "--store", type=click.Path(path_type=Path), help="Read the files of this store directly; no service is needed."
)


@click.group("journal")
def command() -> None:
    """Journals: a group's ordered log of every write."""


@command.command("show")
@click.argument("group")
@output_option
@click.pass_obj
def show(cli: Cli, group: str, as_json: bool) -> None:
    """Show the numbers of a journal."""
    journal = cli.get("groups", group, "journal")
    if as_json:
        show_json(journal)
        return
    window = journal["window"]
    fields(
        [
            ("directory", journal["directory"]),
            ("edge", f"{window['edge']['lsn']}  {window['edge']['time']}"),
            ("head", f"{window['head']['lsn']}  {window['head']['time']}"),
            ("durable up to", journal["durable_lsn"]),
            ("in the bases up to", journal["folded_lsn"]),
            ("size", f"{size(journal['journal_bytes'])} in {journal['segment_count']} segments"),
            ("ready", size(journal["ready_bytes"])),
            ("index in memory", size(journal["index_bytes"])),
            (
                "since opened",
                f"{journal['records']} records, {size(journal['bytes_written'])}, {journal['flushes']} flushes in {journal['syncs']} syncs",
            ),
            ("alert", journal["alert"]),
        ]
    )


@command.command("dump")
@click.argument("group")
@click.option("--from", "from_lsn", type=click.IntRange(min=0), default=0, show_default=True, help="First LSN.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many records.")
@store_option
@output_option
@click.pass_obj
def dump(cli: Cli, group: str, from_lsn: int, limit: int | None, store: Path | None, as_json: bool) -> None:
    """List records without their payload. With `-o json` one object a line."""
    records = _offline(_directory(store, group), from_lsn, limit) if store else _online(cli, group, from_lsn, limit)
    if not as_json:
        click.echo(
            f"{'LSN':>14}  {'TIME':30}  {'TL':>3}  {'VOL':>3}  {'OPCODE':12}  {'LBA':>12}  {'COUNT':>8}  {'PAYLOAD':>8}  DETAIL"
        )
    for r in records:
        if as_json:
            click.echo(json.dumps(r))
            continue
        volume = "-" if r["volume"] == 0xFFFFFFFF else r["volume"]
        click.echo(
            f"{r['lsn']:>14}  {r['time']:30}  {r['timeline']:>3}  {volume:>3}  {r['opcode']:12}  {r['lba']:>12}  {r['count']:>8}  "
            f"{r['payload_bytes']:>8}  {r['detail']}".rstrip()
        )


@command.command("verify")
@click.argument("group")
@store_option
@output_option
@click.pass_context
def verify(ctx: click.Context, group: str, store: Path | None, as_json: bool) -> None:
    """Read a whole journal and check all of it. Exit code 12 if something is wrong."""
    cli: Cli = ctx.obj
    if store:
        from playhead import _native

        verdict = _native.verify(str(_directory(store, group)))
    else:
        verdict = wait.result(cli, cli.post("groups", group, "journal", "verify"))
    summary = (
        f"{group}: {verdict['records']} records in {verdict['segments']} segments, {size(verdict['bytes'])}, "
        f"LSN {verdict['edge']} to {verdict['head']}: {len(verdict['problems'])} problem(s)."
    )
    show_verdict(ctx, verdict, as_json, summary, verdict["problems"])


@command.command("trim")
@click.argument("group")
@click.option("--to", required=True, metavar="POINT", help="LSN, time, -5m, or bookmark: the past before it may go.")
@output_option
@click.pass_obj
def trim(cli: Cli, group: str, to: str, as_json: bool) -> None:
    """Give up the past before a point: whole segments, and never past an open image."""
    edge = cli.post("groups", group, "journal", "trim", body={"to": to})
    if as_json:
        show_json(edge)
    else:
        click.echo(f"The window of {group} now begins at LSN {edge['lsn']} ({edge['time']}).")


def _directory(store: Path, group: str) -> Path:
    """A group's directory in a store; or the directory given, if it is one itself."""
    directory = store / "groups" / group
    if not directory.is_dir():
        raise PlayheadError("not-found", f"store {store} has no group {group!r}", f"look into {store}/groups")
    return directory


def _online(cli: Cli, group: str, from_lsn: int, limit: int | None) -> Iterator[dict[str, Any]]:
    """Records by way of the service, page by page."""
    at: int | None = from_lsn
    left = limit
    while at is not None and left != 0:
        page = cli.get("groups", group, "journal", "records", from_lsn=at, limit=min(PAGE, left or PAGE))
        yield from page["records"]
        if left is not None:
            left -= len(page["records"])
        at = page["next_lsn"]


def _offline(directory: Path, from_lsn: int, limit: int | None) -> Iterator[dict[str, Any]]:
    """Records straight from the files."""
    from playhead import _native

    at: int | None = from_lsn
    left = limit
    while at is not None and left != 0:
        found: list[_native.RecordDict] = []
        further: list[int] = []
        size_now = min(PAGE, left or PAGE)

        def visit(
            record: _native.RecordDict,
            found: list[_native.RecordDict] = found,
            further: list[int] = further,
            size_now: int = size_now,
        ) -> bool:
            if len(found) == size_now:
                further.append(record["lsn"])
                return False
            found.append(record)
            return True

        _native.dump(str(directory), at, visit)
        for record in found:
            yield {"lsn": record["lsn"], "time": show_time(record["time_ns"])} | {
                key: value for key, value in record.items() if key not in ("lsn", "time_ns")
            }
        if left is not None:
            left -= len(found)
        at = further[0] if further else None
