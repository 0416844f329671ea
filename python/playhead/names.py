"""What may be called what, and how an object of a group is written: `GROUP/NAME`.

Names appear in IQNs (RFC 7143 4.2.7: lower-case letters, digits, dash, dot, colon), in NBD export names and in URLs, so they
are kept to what needs no escaping in any of them. Bookmarks must not look like an LSN or a time, hence the leading letter.
"""

from __future__ import annotations

import re

from playhead.errors import PlayheadError

_IQN_NAME = re.compile(r"[a-z][a-z0-9.-]{0,62}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")

IQN_NAME_RULE = "1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter"
NAME_RULE = "1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', beginning with a letter"

RESERVED_BOOKMARKS = frozenset({"head", "now", "edge", "oldest"})


def check_group(name: str) -> str:
    """The name, if a group may have it."""
    return _check("group", name, _IQN_NAME, IQN_NAME_RULE)


def check_image(name: str) -> str:
    """The name, if an image may have it."""
    return _check("image", name, _IQN_NAME, IQN_NAME_RULE)


def check_volume(name: str) -> str:
    """The name, if a volume may have it."""
    return _check("volume", name, _NAME, NAME_RULE)


def check_bookmark(name: str) -> str:
    """The name, if a bookmark may have it."""
    if name.lower() in RESERVED_BOOKMARKS:
        raise PlayheadError(
            "bad-name", f"bookmark {name!r} would be taken for a point of that meaning", "choose another"
        )
    return _check("bookmark", name, _NAME, NAME_RULE)


def _check(noun: str, name: str, pattern: re.Pattern[str], rule: str) -> str:
    if pattern.fullmatch(name):
        return name
    shown = name if len(name) <= 80 else name[:77] + "..."
    raise PlayheadError("bad-name", f"{noun} name {shown!r} is not allowed", f"use {rule}")


def split(reference: str, noun: str) -> tuple[str, str]:
    """`GROUP/NAME` in two; raises if it is not that."""
    group, slash, name = reference.partition("/")
    if not slash or not group or not name or "/" in name:
        raise PlayheadError("invalid", f"{noun} {reference!r} is not GROUP/NAME", f"write it as GROUP/{noun.upper()}")
    return group, name
