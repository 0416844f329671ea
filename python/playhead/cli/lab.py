"""`playhead lab`. It needs no running service, and has nothing to do with one."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from playhead.cli.secret import from_file
from playhead.cli.show import output_option, show_json, size
from playhead.errors import EXIT_UNSAFE, PlayheadError, invalid
from playhead.sizes import parse_size, parse_span_ns

if TYPE_CHECKING:
    from playhead.lab.address import LunAddress
    from playhead.lab.chap import Chap
    from playhead.lab.device import Device
    from playhead.lab.probe import Found, Probe

CONSENT = "I-CONSENT"
SECRET, MUTUAL_SECRET = "PLAYHEAD_LAB_SECRET", "PLAYHEAD_LAB_MUTUAL_SECRET"
OFFLOADS = ("ats", "xcopy", "write-same", "unmap", "odx")


@click.group("lab")
def command() -> None:
    """The interoperability laboratory."""


@command.command("probe")
@click.argument("url", metavar="iscsi://[USER[%SECRET]@]HOST:PORT/IQN/LUN")
@click.option(
    "--consent-to-write-lba",
    "consent",
    metavar="START:COUNT",
    help="Blocks that may be written. What is in them is lost.",
)
@click.option("--scratch", metavar=CONSENT, help=f"The whole LUN may be written: say {CONSENT}. What is in it is lost.")
@click.option("--restore", is_flag=True, help="Write back what was in the blocks that were written.")
@click.option(
    "--offload", "offloads", multiple=True, type=click.Choice(OFFLOADS), help="Only this one; may be repeated."
)
@click.option("--initiator", metavar="IQN", help="Who to be.")
@click.option("--secret-file", metavar="FILE", help=f"USER's CHAP secret; else {SECRET}, else it is asked for.")
@click.option("--mutual-user", metavar="USER", help="Mutual CHAP: what the target calls itself.")
@click.option(
    "--mutual-secret-file", metavar="FILE", help=f"The target's secret; else {MUTUAL_SECRET}, else it is asked for."
)
@click.option("--digests", is_flag=True, help="Header and data digests (CRC32C), if the target has them.")
@click.option("--timeout", default="30s", show_default=True, metavar="SPAN", help="How long the target is waited for.")
@output_option
def probe(url: str, as_json: bool, **given: Any) -> None:
    """What a target says of each offload, and what it does.

    Without consent it only reads what the LUN says of itself. With consent it writes the blocks named, and no others: on a LUN of which
    they are all you can lose.
    """
    from playhead.lab import address
    from playhead.lab.probe import Probe
    from playhead.lab.scratch import lay_out

    ctx = click.get_current_context()
    lun = address.parse(url)
    if lun.secret:
        click.echo(f"playhead: others on this machine can see the secret in the URL; {SECRET} hides it", err=True)
    wanted = _consented(given["consent"], given["scratch"])
    if given["restore"] and wanted is None:
        raise click.UsageError("--restore wants --consent-to-write-lba or --scratch", ctx)
    connect = _Connect(lun, _chap(lun, given), given)
    try:
        device = connect()
        layout = None
        if wanted is not None:
            start, count = wanted
            layout = lay_out(device, start, device.advertised.block_count if count is None else count)
        device.session.close()
        tool = Probe(connect, layout)
        try:
            found = tool.run(_chosen(given["offloads"]), restore=given["restore"])
        finally:
            tool.close()
    except TimeoutError as error:
        raise PlayheadError(
            "unreachable", f"{lun.text} did not answer within {given['timeout']}", "give more --timeout"
        ) from error
    if as_json:
        show_json(_report(lun, tool, found, given["restore"]))
    else:
        _show(lun, tool, found, given["restore"])
    if any(each.unsafe for each in found):
        ctx.exit(EXIT_UNSAFE)


@command.command("vaai")
@click.option("--splitter", "splitters", metavar="NAME[,NAME...]", help="array, host or fabric. [default: all]")
@click.option(
    "--size", "size_text", metavar="SIZE", default="64M", show_default=True, help="What each operation is about."
)
@click.option(
    "--tools/--no-tools", default=True, show_default=True, help="Other people's tools too, where they are installed."
)
@click.option("--page", metavar="FILE", type=click.Path(path_type=Path), help="Write the page docs/lab-vaai.md is.")
@output_option
def vaai(splitters: str | None, size_text: str, tools: bool, page: Path | None, as_json: bool) -> None:
    """What becomes of a replica: every splitter, with every offload supported, rejected and ignored.

    Starts throwaway arrays of its own, in a temporary folder, and ends them. In each cell a data mover does one operation, with the host's
    switch on and off; then every block of the replica is held against production.
    """
    from playhead.lab import vaai as lab
    from playhead.lab.page import row, summary, table
    from playhead.lab.page import tools as tools_table
    from playhead.lab.page import write as write_page

    region_bytes = parse_size(size_text)

    def said(text: str) -> None:
        if sys.stderr.isatty():
            click.echo(text, err=True)

    chosen = splitters.split(",") if splitters else list(lab.ARRANGEMENTS)
    report = lab.run(chosen, region_bytes, tools, lambda each: said("  ".join(row(each)[:6])))
    if page is not None:
        write_page(page, report.cells, report.tools, report.left_out, region_bytes)
    if as_json:
        show_json(report.json())
    else:
        click.echo(table(report.cells))
        if report.tools:
            click.echo(f"\n{tools_table(report.tools)}")
        for absent in report.left_out:
            click.echo(f"\nLeft out: {absent}")
        click.echo(f"\n{summary(report.cells)}.")
    if not report.as_expected:
        click.get_current_context().exit(EXIT_UNSAFE)


class _Connect:
    """Logs in, as often as needed, each time as the same initiator with an ISID of its own: no session that is there is reinstated."""

    def __init__(self, lun: LunAddress, chap: Chap | None, given: dict[str, Any]) -> None:
        from playhead.lab import address, session

        self._lun, self._chap = lun, chap
        self._initiator = address.name(given["initiator"] or session.INITIATOR, "initiator")
        self._timeout_s = parse_span_ns(given["timeout"]) / 1e9
        if not 0 < self._timeout_s <= 3600:
            raise invalid(f"a timeout of {given['timeout']}", "give one from 1ms to 1h")
        digest = "CRC32C,None" if given["digests"] else "None"
        self._keys = {"HeaderDigest": digest, "DataDigest": digest}

    def __call__(self) -> Device:
        from playhead.lab.device import Device
        from playhead.lab.session import Session

        session = Session(
            self._lun.address.text,
            self._lun.target,
            initiator=self._initiator,
            isid=secrets.randbits(24),
            keys=self._keys,
            chap=self._chap,
            timeout_s=self._timeout_s,
        )
        try:
            return Device(session, self._lun.lun)
        except BaseException:
            session.close()
            raise


def _consented(consent: str | None, scratch: str | None) -> tuple[int, int | None] | None:
    """First block and count that may be written; no count: to the end. None: nothing."""
    if consent and scratch:
        raise click.UsageError("--consent-to-write-lba and --scratch are two ways to say it: give one")
    if scratch is not None:
        if scratch != CONSENT:
            raise invalid(
                f"--scratch {scratch} is no consent", f"if everything on the LUN may be lost, say --scratch {CONSENT}"
            )
        return 0, None
    if consent is None:
        return None
    start, colon, count = consent.partition(":")
    if not colon or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in (start, count)):
        raise invalid(
            f"--consent-to-write-lba {consent!r} is not START:COUNT", "give the first block and how many, as 2048:65536"
        )
    return int(start), int(count)


def _chosen(offloads: tuple[str, ...]) -> list[Any]:
    from playhead.lab.advertised import Primitive

    return [primitive for primitive in Primitive if not offloads or primitive.value in offloads]


def _chap(lun: LunAddress, given: dict[str, Any]) -> Chap | None:
    from playhead.lab.chap import Chap

    if lun.user is None:
        if given["secret_file"] or given["mutual_user"] or given["mutual_secret_file"]:
            raise click.UsageError("a secret wants a user: iscsi://USER@HOST:PORT/IQN/LUN")
        return None
    secret = lun.secret or _secret(given["secret_file"], SECRET, f"Secret of {lun.user}")
    if given["mutual_user"] is None:
        if given["mutual_secret_file"]:
            raise click.UsageError("--mutual-secret-file wants --mutual-user")
        return Chap(lun.user, secret)
    mutual = _secret(given["mutual_secret_file"], MUTUAL_SECRET, f"The target's secret, as {given['mutual_user']}")
    return Chap(lun.user, secret, given["mutual_user"], mutual)


def _secret(path: str | None, variable: str, prompt: str) -> str:
    """From a file, the environment, or typed unseen."""
    if path is not None:
        return from_file(Path(path))
    if variable in os.environ:
        return os.environ[variable]
    if not sys.stdin.isatty():
        raise invalid(f"there is no secret: {prompt}", f"set {variable}, or give a file")
    return str(click.prompt(prompt, hide_input=True, err=True))


def _report(lun: LunAddress, tool: Probe, found: list[Found], restored: bool) -> dict[str, Any]:
    """For programs; docs/lab.md has it."""
    said = tool.advertised
    layout = tool.scratch.layout if tool.scratch else None
    return {
        "url": lun.text,
        "vendor": said.vendor,
        "product": said.product,
        "revision": said.revision,
        "block_bytes": said.block_bytes,
        "block_count": said.block_count,
        "designator": said.designator.hex() or None,
        "vpd_pages": [f"{page:02x}" for page in said.pages],
        "written": {"lba": layout.start, "count": layout.count} if layout else None,
        "restored": restored,
        "unsafe": any(each.unsafe for each in found),
        "offloads": [
            {
                "offload": each.primitive.value,
                "says": each.says,
                "because": each.because,
                "outcome": each.outcome.value,
                "contradicts": each.contradicts,
                "unsafe": each.unsafe,
                "tried": [{**asdict(form), "outcome": form.outcome.value} for form in each.tried],
            }
            for each in found
        ],
    }


def _show(lun: LunAddress, tool: Probe, found: list[Found], restored: bool) -> None:
    said = tool.advertised
    click.echo(
        f"{said.vendor} {said.product} {said.revision}, {size(said.block_count * said.block_bytes)} at {lun.text}"
    )
    for each in found:
        done = each.outcome.value.upper() if each.unsafe else each.outcome.value
        note = "  (it says otherwise)" if each.contradicts else ""
        click.echo(f"\n{each.primitive.value}: says {'yes' if each.says else 'no'}, does: {done}{note}")
        click.echo(f"  says    {each.because}")
        for form in each.tried:
            outcome = form.outcome.value.upper() if form.unsafe else form.outcome.value
            click.echo(f"  {outcome}  {form.form}: {form.detail}")
    if tool.scratch is None:
        click.echo("\nNothing was written: give --consent-to-write-lba START:COUNT to find out what it does.")
    else:
        layout = tool.scratch.layout
        after = "were written, and hold again what they held" if restored else "were written"
        click.echo(f"\nBlocks {layout.start} to {layout.start + layout.count - 1} {after}.")
    if any(each.unsafe for each in found):
        click.echo("A host that believes this target loses data: switch what stands in capitals off.")
