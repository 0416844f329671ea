"""The pages say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import click

from playhead import errors
from playhead.cli import NOUNS, cli
from playhead.errors import KINDS
from playhead.node import SETTING_NAMES

DOCS = Path(__file__).parents[2] / "docs"


def test_every_error_code_is_documented_with_its_status_and_exit_code() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \| (\d+) \| ([^|]+) \|", (DOCS / "errors.md").read_text(), re.M)
    documented = {code: (int(status), int(exit_code), title) for code, status, exit_code, title in rows}
    assert documented == {code: (kind.status, kind.exit_code, kind.title) for code, kind in KINDS.items()}


def test_every_exit_code_is_documented() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \| ", (DOCS / "cli.md").read_text(), re.M)}
    used = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert documented == used | {0, 130}


def test_every_setting_is_documented() -> None:
    rows = re.findall(
        r"^\| `([a-z_]+)` \| `(PLAYHEAD_[A-Z_]+)` \| (`--[a-z-]+`)?", (DOCS / "configuration.md").read_text(), re.M
    )
    assert [name for name, _, _ in rows] == list(SETTING_NAMES)
    for name, variable, _ in rows:
        assert variable == f"PLAYHEAD_{name.upper()}"
    serve = cli.get_command(click.Context(cli), "serve")
    assert serve is not None
    flags = {option for parameter in serve.params for option in parameter.opts} - {"--config"}
    assert {flag.strip("`") for _, _, flag in rows if flag} == flags


def test_every_command_is_documented() -> None:
    page = (DOCS / "cli.md").read_text()
    context = click.Context(cli)
    for noun in NOUNS:
        command = cli.get_command(context, noun)
        assert command is not None
        if isinstance(command, click.Group):
            for verb in command.commands:
                assert f"`{noun} {verb}" in page, f"{noun} {verb}"
        else:
            assert f"`{noun}`" in page, noun
