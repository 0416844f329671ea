"""An array with a splitter and a replica, as the matrix sees it: two LUNs for hosts, how offloads are treated, and what the replica holds now.

A throwaway thing: made for the laboratory in a folder of its own, and gone with it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from playhead.errors import PlayheadError
from playhead.lab.advertised import Primitive

SOURCE, TARGET = "source", "target"


class AbsentError(PlayheadError):
    """This machine has not got what an arrangement is made of."""

    def __init__(self, detail: str, next_step: str) -> None:
        super().__init__("not-found", detail, next_step)


class Treatment(enum.Enum):
    """What the splitter does with an offload."""

    SUPPORT = "support"
    """Carried out, and captured."""
    REJECT = "reject"
    """Answered with the sense data that makes hosts fall back."""
    IGNORE = "ignore"
    """Carried out by the array, answered GOOD, and not captured: what corrupted replicas in 2010."""


@dataclass(frozen=True)
class LunPlace:
    """Where a LUN is found."""

    address: str
    """HOST:PORT."""
    target: str
    lun: int

    @property
    def url(self) -> str:
        return f"iscsi://{self.address}/{self.target}/{self.lun}"


@dataclass(frozen=True)
class Journaled:
    """What a replica's journal has taken so far."""

    records: int
    bytes: int


class Arrangement(Protocol):
    """One splitter in one place."""

    @property
    def splitter(self) -> str:
        """`array`, `host` or `fabric`."""

    @property
    def array(self) -> str:
        """What production is, in a few words."""

    def impossible(self, primitive: Primitive, treatment: Treatment) -> str | None:
        """Why there can be no such cell; none if there can."""

    def treat(self, primitive: Primitive, treatment: Treatment) -> None:
        """From now on, while hosts stay logged in. Every other offload is supported."""

    def production(self, name: str) -> LunPlace:
        """`source` or `target`, as hosts see it."""

    def medium(self, name: str) -> LunPlace:
        """Production itself, past the splitter where there is a way: what the replica is held against."""

    def nbd_url(self, name: str) -> str | None:
        """Production over NBD, if hosts have that way."""

    def replica(self, name: str) -> LunPlace:
        """The replica of it as of now, read-only; another one at each call."""

    def journaled(self) -> Journaled:
        """So far."""

    def served(self, primitive: Primitive) -> tuple[int, int]:
        """Commands of hosts carried out and rejected so far."""

    def close(self) -> None:
        """Ends it."""
