"""Secrets on the command line: from a file, from stdin, or typed unseen; never an argument, which others could read."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from playhead.errors import PlayheadError, invalid
from playhead.node import store_error

F = TypeVar("F", bound=Callable[..., Any])

MAX_BYTES = 4096


def chap_options(command: F) -> F:
    """`--user`, `--secret-file`, the same for mutual CHAP, and `--none`; for `chap_body`."""
    for option in reversed(
        (
            click.option("--user", metavar="USER", help="What initiators call themselves in CHAP."),
            click.option(
                "--secret-file",
                metavar="FILE",
                help="Their secret ('-': stdin). Without it: asked for, or read from stdin.",
            ),
            click.option("--mutual-user", metavar="USER", help="Mutual CHAP: what the target calls itself."),
            click.option("--mutual-secret-file", metavar="FILE", help="The target's secret."),
            click.option("--none", "none", is_flag=True, help="Forget the credentials."),
        )
    ):
        command = option(command)
    return command


def chap_body(
    user: str | None, secret_file: str | None, mutual_user: str | None, mutual_secret_file: str | None, none: bool
) -> dict[str, str] | None:
    """The request's body; None: forget."""
    context = click.get_current_context()
    if none:
        if user or secret_file or mutual_user or mutual_secret_file:
            raise click.UsageError("--none stands alone", context)
        return None
    if not user:
        raise click.UsageError("give --user, or --none", context)
    if mutual_secret_file and not mutual_user:
        raise click.UsageError("--mutual-secret-file wants --mutual-user", context)
    body = {"user": user, "secret": _secret(secret_file, f"Secret of {user}")}
    if mutual_user:
        body |= {
            "mutual_user": mutual_user,
            "mutual_secret": _secret(mutual_secret_file, f"The target's secret, as {mutual_user}"),
        }
    return body


def _secret(path: str | None, prompt: str) -> str:
    if path is not None and path != "-":
        return from_file(Path(path))
    if path is None and sys.stdin.isatty():
        return str(click.prompt(prompt, hide_input=True, confirmation_prompt=True, err=True))
    line = sys.stdin.readline(MAX_BYTES).rstrip("\r\n")
    if not line:
        raise invalid("no secret came on stdin", "give --secret-file FILE, or pipe it in, one secret a line")
    return line


def from_file(path: Path) -> str:
    """The secret in a file that its owner alone can read."""
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            text = file.read(MAX_BYTES).decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise store_error(error, path, "the secret cannot be read from") from error
    except UnicodeDecodeError as error:
        raise invalid(f"secret file {path} is not text", "write one line of text into it") from error
    if stat.S_ISREG(mode) and mode & 0o077:
        raise PlayheadError("permission", f"secret file {path} can be read by others", f"chmod 600 {path}")
    return text
