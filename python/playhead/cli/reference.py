"""`GROUP/NAME` on the command line, and disks: `GROUP/VOLUME` or `GROUP/IMAGE/VOLUME`."""

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


class DiskPath(click.ParamType[str]):
    """A parameter that names a disk of production or of an image."""

    name = "group/volume"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> str:
        return names.check_path(str(value))


def disk_argument(required: bool = True) -> Callable[[F], F]:
    """The argument GROUP/VOLUME or GROUP/IMAGE/VOLUME, as the parameter `path`."""
    metavar = "GROUP[/IMAGE]/VOLUME" if required else "[GROUP[/IMAGE]/VOLUME]"
    return click.argument("path", metavar=metavar, type=DiskPath(), required=required)


def disk_option(name: str, text: str) -> Callable[[F], F]:
    """The same as an option."""
    return click.option(name, metavar="GROUP[/IMAGE]/VOLUME", type=DiskPath(), help=text)
