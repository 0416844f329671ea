"""Points: a group's instants, and the four ways people name one (an LSN, a time, a span back from now, a bookmark)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

from playhead.errors import PlayheadError, invalid, not_found
from playhead.sizes import parse_span_ns

if TYPE_CHECKING:
    from playhead._native import BookmarkDict, PointDict

EXPRESSIONS = "an LSN, an RFC 3339 time, a span back from now such as -5m, a bookmark's name, 'head' or 'edge'"

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:\d\d)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_LSN = (1 << 63) - 1
MAX_TIME_NS = (1 << 63) - 1


def show_time(time_ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds, the journal's own precision."""
    seconds, ns = divmod(time_ns, 1_000_000_000)
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S") + f".{ns:09d}Z"


def parse_time_ns(text: str) -> int | None:
    """Nanoseconds since the epoch of an RFC 3339 time; None if it does not look like one. A time without a zone is refused:
    it would mean another instant on another machine."""
    found = _RFC3339.fullmatch(text)
    if not found:
        return None
    if not found[8]:
        raise invalid(f"time {text!r} has no zone", f"write {text}Z for UTC, or an offset such as +02:00")
    try:
        zone: timezone = UTC
        if found[8] not in ("Z", "z"):
            minutes = int(found[8][1:3]) * 60 + int(found[8][4:6])
            zone = timezone(timedelta(minutes=-minutes if found[8][0] == "-" else minutes))
        year, month, day, hour, minute, second = (int(found[i]) for i in range(1, 7))
        leap = 1 if second == 60 else 0
        moment = datetime(year, month, day, hour, minute, second - leap, tzinfo=zone)
        since = (moment - _EPOCH) + timedelta(seconds=leap)
    except (ValueError, OverflowError) as error:
        raise invalid(f"time {text!r} does not exist ({error})", "write it like 2026-05-04T13:00:00Z") from error
    time_ns = (since.days * 86400 + since.seconds) * 1_000_000_000 + int((found[7] or "").ljust(9, "0"))
    if not 0 <= time_ns <= MAX_TIME_NS:
        raise invalid(f"time {text!r} is before 1970 or after 2262", "choose one inside the protection window")
    return time_ns


def resolve(
    at: str,
    *,
    group: str,
    head: Callable[[], PointDict],
    edge: Callable[[], PointDict],
    at_lsn: Callable[[int], PointDict],
    at_time: Callable[[int], PointDict],
    bookmarks: Callable[[], list[BookmarkDict]],
    now_ns: Callable[[], int] = time.time_ns,
) -> PointDict:
    """The point that `at` names in a group."""
    text = at.strip()
    if text in ("head", "now"):
        return head()
    if text in ("edge", "oldest"):
        return edge()
    if text.isascii() and text.isdigit():
        if len(text) > 19 or int(text) > MAX_LSN:
            raise invalid(f"LSN {text[:30]} of group {group} is too large", "see `playhead group head`")
        return at_lsn(int(text))
    time_ns = max(0, now_ns() - parse_span_ns(text[1:])) if text.startswith("-") else parse_time_ns(text)
    if time_ns is not None:
        oldest = edge()
        if time_ns < oldest["time_ns"]:
            raise PlayheadError(
                "outside-window",
                f"{show_time(time_ns)} is before the protection window of group {group}, "
                f"which begins at {show_time(oldest['time_ns'])}",
                "choose a later time, or 'edge' for the oldest point",
            )
        return at_time(time_ns)
    for bookmark in bookmarks():
        if bookmark["name"] == text:
            return bookmark["point"]
    shown = text if len(text) <= 80 else text[:77] + "..."
    raise not_found(f"group {group} has no point {shown!r}", f"give {EXPRESSIONS}")
