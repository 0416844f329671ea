"""Sizes and spans as people write them, and back."""

from __future__ import annotations

import re
from fractions import Fraction

from playhead.errors import invalid

BLOCK_BYTES = 512
MAX_VOLUME_BYTES = 64 << 40

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGTP", start=1):
    _UNITS[_letter] = _UNITS[_letter + "IB"] = 1024**_power
    _UNITS[_letter + "B"] = 1000**_power

_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})", re.ASCII)

_SPAN_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 7 * 86_400_000_000_000,
}
_SPAN = re.compile(r"(?:\d{1,12}(?:\.\d{1,9})?(?:ns|us|ms|[smhdw]))+", re.ASCII)
_SPAN_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ns|us|ms|[smhdw])", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of `10G`, `1.5TiB`, `4096`, `64 KB`. K, KiB, M, … are powers of 1024; KB, MB, … of 1000."""
    found = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(found[2].upper()) if found else None
    if not found or factor is None:
        raise invalid(
            f"{text!r} is not a size", "write bytes, or a number with K, M, G, T (1024) or KB, MB, GB, TB (1000)"
        )
    size = Fraction(found[1]) * factor
    if size.denominator != 1:
        raise invalid(f"{text!r} is not a whole number of bytes", "round it")
    return int(size)


def show_size(size_bytes: int) -> str:
    """`10.0 GiB`, for people."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{size_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def parse_span_ns(text: str) -> int:
    """Nanoseconds of `5m`, `1h30m`, `2d`, `250ms`."""
    text = text.strip()
    if not _SPAN.fullmatch(text):
        raise invalid(f"{text!r} is not a span of time", "write it like 30s, 5m, 1h30m, 2d or 1w")
    return sum(int(Fraction(number) * _SPAN_UNITS_NS[unit]) for number, unit in _SPAN_PART.findall(text))


def show_span_ns(span_ns: int) -> str:
    """`2h 5m`, for people: the two largest units that are not zero."""
    if span_ns < 1_000_000_000:
        return f"{span_ns / 1e6:.0f}ms"
    parts: list[str] = []
    rest = span_ns
    for unit in ("w", "d", "h", "m", "s"):
        count, rest = divmod(rest, _SPAN_UNITS_NS[unit])
        if count and len(parts) < 2:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts)
