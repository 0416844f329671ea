"""`GROUP/NAME` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from playhead import names

F = TypeVar("F", bound=Callable[..., Any])


class Reference(click.ParamType[tuple[str, str]]):
    """A parameter that names an object of a group."""

    def __init__(self, noun: str) -> None:
        self.name = f"group/{noun}"
        self._noun = noun

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        return names.split(str(value), self._noun)


def object_argument(noun: str) -> Callable[[F], F]:
    """The argument GROUP/NOUN, as the parameter `which`."""
    return click.argument("which", metavar=f"GROUP/{noun.upper()}", type=Reference(noun))
