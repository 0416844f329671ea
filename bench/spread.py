"""A figure of several rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A median with the least and the greatest value it stands for."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Of at least one value."""
        held = list(values)
        return Spread(statistics.median(held), min(held), max(held))

    def text(self, digits: int) -> str:
        """median [least .. greatest], or the value alone when there is one."""
        middle = f"{self.median:,.{digits}f}"
        if self.low == self.high:
            return middle
        return f"{middle} [{self.low:,.{digits}f} .. {self.high:,.{digits}f}]"
