"""Following a job to its end, with its progress on the terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from playhead.cli.client import Cli
from playhead.cli.show import show_json
from playhead.errors import KINDS, PlayheadError
from playhead.sizes import show_size

POLL_S = 0.2


def follow(cli: Cli, job: dict[str, Any], no_wait: bool, as_json: bool, quiet: bool = False) -> dict[str, Any]:
    """Waits for a job unless told not to; raises what it failed with. Ctrl-C leaves it running and says so."""
    if not no_wait:
        try:
            while job["state"] == "running":
                _progress(job)
                time.sleep(POLL_S)
                job = cli.get("jobs", job["id"])
        except KeyboardInterrupt:
            click.echo(f"\n{job['id']} goes on; stop it with `playhead job cancel {job['id']}`.", err=True)
            raise click.Abort from None
        finally:
            if sys.stderr.isatty():
                click.echo("\r\033[K", nl=False, err=True)
    if job["state"] in ("failed", "cancelled"):
        problem = job["problem"] or {}
        code = "cancelled" if job["state"] == "cancelled" else problem.get("code", "internal")
        detail = f"{job['kind']} of {job['object']} was cancelled" if code == "cancelled" else problem.get("detail", "")
        raise PlayheadError(code if code in KINDS else "internal", detail, problem.get("next_step", ""))
    if as_json:
        show_json(job)
    elif not quiet:
        click.echo(f"{job['kind']} of {job['object']}: {job['state']} ({job['id']}).")
    return job


def result(cli: Cli, job: dict[str, Any]) -> dict[str, Any]:
    """Waits for a job and says nothing of it; what it came to."""
    found: dict[str, Any] = follow(cli, job, no_wait=False, as_json=False, quiet=True)["result"]
    return found


def _progress(job: dict[str, Any]) -> None:
    if not sys.stderr.isatty():
        return
    done, total = job["done_bytes"], job["total_bytes"]
    share = f"{100 * done // total:3d}%  {show_size(done)} of {show_size(total)}" if total else "…"
    click.echo(f"\r\033[K{job['kind']} of {job['object']}: {share}", nl=False, err=True)
