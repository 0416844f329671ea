"""Loses a file share and a database, and gets back every file and every row: `make demo`.

Everything here is real: the service, an ext4 and a SQLite database on its LUNs, and iSCSI in between. Each claim is
checked before the next one is made; the first that does not hold ends the demo with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from demo import contents
from demo.appliance import Appliance, complaints, serving
from demo.contents import Checksums, Ledger
from demo.filesystem import Host
from demo.programs import DemoError, has_fuse, missing

GROUP = "shop"
FILES_BYTES = 256 << 20
LEDGER_BYTES = 64 << 20
QUIET_S = 1.5
"""A pause before the disaster, so that "-4s" can name a moment in it."""


class Teller:
    """Tells the story, and keeps what a program wants to know of it."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}
        self.checks: list[str] = []
        self._begun = time.monotonic()
        self._chapters = 0

    def chapter(self, title: str) -> None:
        self._chapters += 1
        print(f"\n{self._chapters}. {title}  [{time.monotonic() - self._begun:.1f} s]", flush=True)

    def say(self, text: str) -> None:
        print(textwrap.fill(text, 96, initial_indent="   ", subsequent_indent="   "), flush=True)

    def command(self, text: str) -> None:
        print(f"     $ playhead {text}", flush=True)

    def check(self, holds: bool, claim: str) -> None:
        """States a claim that has been looked at."""
        if not holds:
            raise DemoError(f"it does not hold that {claim}")
        self.checks.append(claim)
        first, *rest = textwrap.wrap(claim[0].upper() + claim[1:] + ".", 90)
        print(
            f"   \N{CHECK MARK} {first}", *(f"     {line}" for line in rest), sep="\n", flush=True
        )


class Share:
    """The two LUNs as a host uses them: of production or of an image."""

    def __init__(self, disks: list[dict[str, Any]], host: Host) -> None:
        urls = {disk["name"]: str(disk["iscsi_url"]) for disk in disks}
        self.files_url, self.ledger_url = urls["files"], urls["ledger"]
        self._host = host

    @contextlib.contextmanager
    def files(self, writable: bool = False) -> Iterator[Path]:
        with self._host.directory(self.files_url, writable) as place:
            yield place

    @contextlib.contextmanager
    def ledger(self, writable: bool = False) -> Iterator[Path]:
        with self._host.directory(self.ledger_url, writable) as place:
            yield place

    def contents(self) -> tuple[Checksums, Ledger]:
        """Reads every file and every row."""
        with self.files() as place:
            found = contents.checksums(place)
        with self.ledger() as place:
            return found, contents.read_ledger(place)

    def fsck(self) -> None:
        """Both file systems are clean, or it is an error."""
        for url in (self.files_url, self.ledger_url):
            self._host.check(url)


def story(tell: Teller, appliance: Appliance, host: Host) -> None:
    """All of it, from empty LUNs to the end."""
    tell.chapter("Two LUNs with one past")
    tell.say(
        f"An appliance is up: process {appliance.process_id}, iSCSI on {appliance.iscsi}. It gets a consistency group "
        "of two volumes. Whatever is written to either goes, in one order, into one journal."
    )
    tell.command(f"group create {GROUP}")
    appliance.ask("POST", "groups", {"name": GROUP})
    volumes = []
    for name, size in (("files", FILES_BYTES), ("ledger", LEDGER_BYTES)):
        tell.command(f"volume create {GROUP}/{name} --size {size >> 20}M")
        made = appliance.ask("POST", f"groups/{GROUP}/volumes", {"name": name, "size_bytes": size})
        volumes.append(made)
        tell.say(f"  {made['iscsi_url']}")
    production = Share(volumes, host)

    tell.chapter("Something worth losing")
    host.make_ext4(production.files_url, "files")
    host.make_ext4(production.ledger_url, "ledger")
    with production.files(writable=True) as place:
        contents.plant(place)
        files = contents.checksums(place)
    with production.ledger(writable=True) as place:
        commits = contents.open_ledger(place)
        ledger = contents.read_ledger(place)
    tell.say(
        f"An ext4 on each, made and filled over iSCSI: {len(files)} files on one, and on the other a "
        f"SQLite database of {ledger.payments} payments, {ledger.total_cents / 100:,.2f} EUR in {commits} transactions."
    )
    production.fsck()
    tell.check(
        production.contents() == (files, ledger),
        "read back over iSCSI, every file and row is there",
    )
    tell.command(f"bookmark create {GROUP}/payday")
    bookmark = appliance.ask(
        "POST", f"groups/{GROUP}/bookmarks", {"name": "payday", "kind": "application"}
    )
    quiet_since = time.time()
    tell.say(f"This instant now has a name: LSN {bookmark['lsn']}, {bookmark['time']}.")
    time.sleep(QUIET_S)

    tell.chapter("The disaster")
    with production.files(writable=True) as place:
        removed, encrypted = contents.ruin(place)
    between = appliance.ask("GET", f"groups/{GROUP}/head")
    tell.say(
        f"First the share: {removed} files removed, {encrypted} encrypted in place, and a note about bitcoin. The journal "
        f"now reaches to LSN {between['lsn']}."
    )
    with production.ledger(writable=True) as place:
        deleted, zeroed = contents.ruin_ledger(place)
    tell.say(
        f"Then, in the confusion, an UPDATE with the wrong WHERE: {deleted} payments deleted, {zeroed} set to zero. "
        "Committed and acknowledged."
    )
    production.fsck()
    ruins = production.contents()
    tell.check(
        not set(files.items()) <= set(ruins[0].items()) and ruins[1] != ledger,
        "production is ruined, and both file systems are perfectly clean: no check will ever find this",
    )

    look_at_the_past(tell, appliance, host, (files, ledger), ruins, between["lsn"], quiet_since)

    tell.chapter("Production goes back")
    tell.command(f"group rewind {GROUP} --to payday")
    rewind, rewind_ms = appliance.timed("POST", f"groups/{GROUP}/rewind", {"to": "payday"})
    tell.timings_ms["rewind"] = rewind_ms
    tell.say(
        f"Production is at LSN {rewind['to']['lsn']} again, after {rewind_ms:.1f} ms. No data was moved: from here on it "
        "is a new branch of the same journal."
    )
    production.fsck()
    tell.check(
        production.contents() == (files, ledger),
        f"production has all {len(files)} files and {ledger.payments} payments",
    )

    tell.chapter("And back again")
    tell.say(
        "A rewind does not rewrite history: what came after payday is still there, so the rewind can be undone."
    )
    tell.command(f"group undo {GROUP}")
    _, undo_ms = appliance.timed("POST", f"groups/{GROUP}/undo")
    tell.timings_ms["undo"] = undo_ms
    production.fsck()
    tell.check(
        production.contents() == ruins,
        f"{undo_ms:.1f} ms later the ruins are back, to the last byte and row",
    )
    tell.say(
        "An undo is a rewind like any other, and so can be undone itself. Once more, and we are done:"
    )
    tell.command(f"group undo {GROUP}")
    appliance.ask("POST", f"groups/{GROUP}/undo")
    tell.check(production.contents() == (files, ledger), "production is whole")

    tell.chapter("The books")
    tell.command(f"journal verify {GROUP}")
    verdict = appliance.done(appliance.ask("POST", f"groups/{GROUP}/journal/verify"))
    tell.check(
        not verdict["problems"],
        f"the journal's {verdict['records']} records ({verdict['bytes'] >> 20} MiB) bear their checksums, and every "
        "index says what they say",
    )


def look_at_the_past(
    tell: Teller,
    appliance: Appliance,
    host: Host,
    before: tuple[Checksums, Ledger],
    ruins: tuple[Checksums, Ledger],
    between_lsn: int,
    quiet_since: float,
) -> None:
    """Images of three moments: the bookmark, a time, an LSN."""
    images = f"groups/{GROUP}/images"
    tell.chapter("Looking at the past")
    tell.command(f"image open {GROUP}/rescue --at payday --writable")
    opened, open_ms = appliance.timed(
        "POST", images, {"name": "rescue", "at": "payday", "writable": True}
    )
    tell.timings_ms["image_open_writable"] = open_ms
    rescue = Share(opened["volumes"], host)
    tell.say(
        f"The moment of the bookmark is on the wire after {open_ms:.1f} ms, as two more LUNs beside production:"
    )
    tell.say(f"  {rescue.files_url}")
    rescue.fsck()
    tell.check(
        rescue.contents() == before,
        f"the image has all {len(before[0])} files with their checksums and all {before[1].payments} rows",
    )
    with rescue.ledger(writable=True) as place:
        rows = contents.try_upgrade(place)
    tell.say(
        f"It can be written: a schema change was rehearsed on {rows} rows of it. That is a branch of its own."
    )
    tell.check(production_is(appliance, host, ruins), "production noticed nothing of that")
    tell.command(f"image close {GROUP}/rescue")
    appliance.ask("DELETE", f"{images}/rescue")

    # A whole number of seconds that leads from now into the quiet moments before the disaster.
    seconds = int(time.time() - quiet_since - 0.1)
    tell.say(
        f'No bookmark? Then by the clock: "{seconds} seconds ago" was between payday and the disaster.'
    )
    tell.command(f"image open {GROUP}/by-clock --at -{seconds}s")
    opened, open_ms = appliance.timed("POST", images, {"name": "by-clock", "at": f"-{seconds}s"})
    tell.timings_ms["image_open_by_time"] = open_ms
    tell.check(
        Share(opened["volumes"], host).contents() == before,
        f"the image of {opened['point']['time']} (LSN {opened['point']['lsn']}, open in {open_ms:.1f} ms) is whole",
    )
    tell.say(
        "Or to the byte of the journal: after the share was lost, but before anybody touched the ledger."
    )
    tell.command(f"image open {GROUP}/between --at {between_lsn}")
    opened, open_ms = appliance.timed("POST", images, {"name": "between", "at": str(between_lsn)})
    tell.timings_ms["image_open_by_lsn"] = open_ms
    tell.check(
        Share(opened["volumes"], host).contents() == (ruins[0], before[1]),
        f"at LSN {between_lsn} (open in {open_ms:.1f} ms) the files are lost and the ledger is not",
    )
    for name in ("by-clock", "between"):
        appliance.ask("DELETE", f"{images}/{name}")


def production_is(appliance: Appliance, host: Host, expected: tuple[Checksums, Ledger]) -> bool:
    """Whether production has just these contents."""
    return Share(appliance.ask("GET", f"groups/{GROUP}/volumes"), host).contents() == expected


def demo(keep: bool, fuse: bool, report: Path | None) -> None:
    """The story in a place of its own, which is removed afterwards unless it is to be kept."""
    lacks = missing(fuse)
    if lacks:
        raise DemoError("this machine lacks\n" + "\n".join(f"  - {one}" for one in lacks))
    tell = Teller()
    if not fuse:
        tell.say(
            "Without /dev/fuse nothing can be mounted. So files are copied out of the LUNs and back into them, "
            "over iSCSI all the same."
        )
    begun = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="playhead-demo-"))
    try:
        with serving(work / "store", work) as appliance:
            story(tell, appliance, Host(work, fuse))
        complaint = complaints(work)
        tell.check(
            not complaint,
            "the service stopped when asked, and had nothing to complain of all along",
        )
    except BaseException:
        log = work / "serve.log"
        if log.exists():
            last = log.read_text(errors="replace").splitlines()[-20:]
            print("\nThe service's log ends:", *last, sep="\n  ")
        raise
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    seconds = time.monotonic() - begun
    print(
        f"\n   Nothing was lost, in {seconds:.0f} s."
        + (f" All of it is in {work}." if keep else "")
    )
    if report is not None:
        outcome = {"checks": tell.checks, "timings_ms": tell.timings_ms, "seconds": seconds}
        report.write_text(json.dumps(outcome, indent=2))


def _stop(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """The program. Exit code 0: every claim held."""
    parser = argparse.ArgumentParser(
        description="Lose a file share and a database, and get everything back."
    )
    parser.add_argument("--keep", action="store_true", help="keep the store and the logs")
    parser.add_argument("--no-fuse", action="store_true", help="do as if /dev/fuse were not there")
    parser.add_argument(
        "--report", type=Path, help="write checks and timings to this file, as JSON"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    fuse = not arguments.no_fuse and has_fuse() and not missing(fuse=True)
    try:
        demo(arguments.keep, fuse, arguments.report)
    except DemoError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nThe demo was stopped; what it had started is ended.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
