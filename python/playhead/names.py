"""What may be called what, and how an object of a group is written: `GROUP/NAME`.

Names appear in IQNs (RFC 7143 4.2.7: lower-case letters, digits, dash, dot, colon), in NBD export names and in URLs, so they
are kept to what needs no escaping in any of them. Bookmarks must not look like an LSN or a time, hence the leading letter.
"""

from __future__ import annotations

import re

from playhead.errors import PlayheadError

_IQN_NAME = re.compile(r"[a-z][a-z0-9.-]{0,62}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")

_INITIATOR = re.compile(r"iqn\.\d{4}-\d{2}\.[^\s,=\x00-\x20\x7f]+|eui\.[0-9a-f]{16}|naa\.(?:[0-9a-f]{16}|[0-9a-f]{32})")

MAX_ISCSI_NAME_BYTES = 223
"""RFC 7143 4.2.7.1."""

IQN_NAME_RULE = "1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter"
NAME_RULE = "1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', beginning with a letter"

RESERVED_BOOKMARKS = frozenset({"head", "now", "edge", "oldest"})


def check_group(name: str) -> str:
    """The name, if a group may have it."""
    return _check("group", name, _IQN_NAME, IQN_NAME_RULE)


def check_image(name: str) -> str:
    """The name, if an image may have it."""
    return _check("image", name, _IQN_NAME, IQN_NAME_RULE)


def check_copy(name: str) -> str:
    """The name, if a copy may have it."""
    return _check("copy", name, _IQN_NAME, IQN_NAME_RULE)


def check_volume(name: str) -> str:
    """The name, if a volume may have it."""
    return _check("volume", name, _NAME, NAME_RULE)


def check_host(name: str) -> str:
    """The name, if a host may have it."""
    return _check("host", name, _NAME, NAME_RULE)


def check_array(name: str) -> str:
    """The name, if an array may have it."""
    return _check("array", name, _NAME, NAME_RULE)


def check_initiator(name: str) -> str:
    """An initiator's iSCSI name in its normal form, which is lower case (RFC 7143 4.2.7.2)."""
    normal = name.strip().lower()
    if _INITIATOR.fullmatch(normal) and len(normal.encode()) <= MAX_ISCSI_NAME_BYTES:
        return normal
    shown = name if len(name) <= 80 else name[:77] + "..."
    raise PlayheadError(
        "bad-name",
        f"{shown!r} is no initiator name",
        "write it as the host has it (/etc/iscsi/initiatorname.iscsi, or the adapter's page): iqn.YYYY-MM.…, eui.… or naa.…",
    )


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


def check_path(path: str) -> str:
    """The path of a disk, if it has that form: `GROUP/VOLUME`, or `GROUP/IMAGE/VOLUME`."""
    parts = path.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        shown = path if len(path) <= 200 else path[:197] + "..."
        raise PlayheadError(
            "invalid", f"{shown!r} is no LUN", "write GROUP/VOLUME, or GROUP/IMAGE/VOLUME for a disk of an image"
        )
    return path


def split(reference: str, noun: str) -> tuple[str, str]:
    """`GROUP/NAME` in two; raises if it is not that."""
    group, slash, name = reference.partition("/")
    if not slash or not group or not name or "/" in name:
        raise PlayheadError("invalid", f"{noun} {reference!r} is not GROUP/NAME", f"write it as GROUP/{noun.upper()}")
    return group, name
