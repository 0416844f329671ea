"""How a refusal looks on a terminal, one line, and what the program exits with."""

from __future__ import annotations

import json
import os
import sys
import traceback

import click

from playhead._native import NativeError
from playhead.errors import EXIT_INTERNAL, EXIT_USAGE, PlayheadError
from playhead.problem import problem_of

SIGINT_EXIT = 130
"""128 + SIGINT, the shells' convention."""

wants_json = False
"""Set by a command that was given `-o json`: its refusal is then JSON too."""


def exit_with(error: Exception) -> int:
    """Shows an error on stderr; returns the exit code."""
    if isinstance(error, NativeError):
        error = PlayheadError(error.code, error.message)
    if isinstance(error, PlayheadError):
        _say(error)
        return error.kind.exit_code
    if isinstance(error, click.Abort):
        print("playhead: interrupted", file=sys.stderr)
        return SIGINT_EXIT
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        print(f"playhead: {error.format_message()}{hint}", file=sys.stderr)
        return EXIT_USAGE
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    traceback.print_exception(error)
    print("playhead: this is a defect; please report it", file=sys.stderr)
    return EXIT_INTERNAL


def _say(error: PlayheadError) -> None:
    if wants_json:
        print(json.dumps(problem_of(error)), file=sys.stderr)
        return
    print(f"playhead: {' '.join(str(error).split())}", file=sys.stderr)
