"""Offload policy: which of the commands that hosts hand over to storage (VAAI, ODX) are carried out, and for whom.

A rule says `support` or `reject` for one offload at one scope. Where several fit, the narrowest decides: LUN and initiator, LUN and host, LUN,
initiator, host, appliance; where none fits, the offload is supported. Supported means carried out and recorded; rejected means
INVALID COMMAND OPERATION CODE (SPC-4 4.5.6), upon which hosts do the work with plain reads and writes. There is no third: a command that
is answered GOOD and not recorded is what spoiled replicas in 2010.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from playhead import names
from playhead.catalogue import Catalogue
from playhead.errors import PlayheadError, invalid, not_found

OffloadName = Literal["ats", "xcopy", "write-same", "unmap", "odx"]
Action = Literal["support", "reject"]

OFFLOADS: tuple[OffloadName, ...] = get_args(OffloadName)

NativeRule = tuple[bytes | None, str | None, str, bool]
"""What the front ends take: the LUN's uuid, the initiator's name, the offload, whether it is supported."""

MAX_RULES = 10_000


@dataclass(frozen=True)
class Scope:
    """Whom a rule is for. What is None is any."""

    lun: str | None = None
    initiator: str | None = None
    host: str | None = None

    @property
    def text(self) -> str:
        """`LUN crm/data, host esx1`, for people."""
        parts = [
            f"{noun} {value}"
            for noun, value in (("LUN", self.lun), ("initiator", self.initiator), ("host", self.host))
            if value is not None
        ]
        return ", ".join(parts) or "appliance"


@dataclass(frozen=True)
class Rule:
    """One decision."""

    scope: Scope
    offload: OffloadName
    action: Action


class Rules:
    """All rules at one moment."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._actions = {(rule.scope, rule.offload): rule.action for rule in rules}

    def all(self) -> list[Rule]:
        """Widest first."""
        rules = [Rule(scope, offload, action) for (scope, offload), action in self._actions.items()]
        return sorted(rules, key=lambda rule: (_rank(rule.scope), rule.scope.text, OFFLOADS.index(rule.offload)))

    def decide(
        self, offload: OffloadName, lun: str | None = None, initiator: str | None = None, host: str | None = None
    ) -> Rule | None:
        """The rule in force for an initiator, of that host if of any, at that LUN; None: the default, support."""
        for scope in _narrowest_first(lun, initiator, host):
            action = self._actions.get((scope, offload))
            if action is not None:
                return Rule(scope, offload, action)
        return None

    def supports(self, offload: OffloadName, lun: str | None = None) -> bool:
        """Whether an offload is carried out for somebody who has no name: NBD's clients."""
        rule = self.decide(offload, lun)
        return rule is None or rule.action == "support"

    def native(self, members: Mapping[str, Iterable[str]], uuids: Mapping[str, bytes]) -> list[NativeRule]:
        """The table for the front ends, which know LUNs by their uuid and no hosts: a host's rule is one of each of its initiators, unless
        that one has a rule of its own. Rules of LUNs that are not exported now are left out.
        """
        table: list[NativeRule] = []
        for (scope, offload), action in self._actions.items():
            if scope.lun is not None and scope.lun not in uuids:
                continue
            uuid = uuids[scope.lun] if scope.lun is not None else None
            if scope.host is None:
                table.append((uuid, scope.initiator, offload, action == "support"))
                continue
            table += [
                (uuid, initiator, offload, action == "support")
                for initiator in members.get(scope.host, ())
                if (Scope(lun=scope.lun, initiator=initiator), offload) not in self._actions
            ]
        return table


def _rank(scope: Scope) -> int:
    """How narrow: 0 is the appliance."""
    if scope.lun is None:
        return 0 if scope == Scope() else 1 if scope.host is not None else 2
    return 3 if scope == Scope(lun=scope.lun) else 4 if scope.host is not None else 5


def _narrowest_first(lun: str | None, initiator: str | None, host: str | None) -> list[Scope]:
    scopes = {Scope(at, who, of) for at in {lun, None} for who, of in {(initiator, None), (None, host), (None, None)}}
    return sorted(scopes, key=_rank, reverse=True)


def check_offload(text: str) -> OffloadName:
    """The offload of that name."""
    for offload in OFFLOADS:
        if text == offload:
            return offload
    raise invalid(f"there is no offload {text[:80]!r}", f"the offloads are {', '.join(OFFLOADS)}")


def check_action(offload: str, text: str) -> Action:
    """`support` or `reject`; anything else is refused, and `ignore` with the reason."""
    if text == "support":
        return "support"
    if text == "reject":
        return "reject"
    if text == "ignore":
        raise invalid(
            f"{offload}=ignore cannot be configured: the host would see GOOD for a command that is in no journal, and every image, rewind and "
            "copy after it would be wrong",
            f"use {offload}=reject: hosts then do the work with plain reads and writes, which are recorded",
        )
    raise invalid(f"{offload} cannot be {text[:80]!r}", f"write {offload}=support or {offload}=reject")


class OffloadPolicy:
    """The rules in the catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def rules(self) -> Rules:
        with self._catalogue.transaction() as db:
            rows = db.execute("SELECT lun, initiator, host, offload, support FROM offload_rules").fetchall()
        return Rules(
            Rule(Scope(lun, initiator, host), offload, "support" if support else "reject")
            for lun, initiator, host, offload, support in rows
        )

    def set(self, scope: Scope, actions: Mapping[str, str]) -> None:
        """Decides offloads at a scope, all or none of them."""
        if not actions:
            raise invalid("no offload is named", f"write OFFLOAD=support or OFFLOAD=reject; {', '.join(OFFLOADS)}")
        checked = {check_offload(offload): check_action(offload, action) for offload, action in actions.items()}
        with self._catalogue.transaction() as db:
            if (
                scope.host is not None
                and not db.execute("SELECT 1 FROM hosts WHERE name = ?", (scope.host,)).fetchone()
            ):
                raise no_host(scope.host)
            for offload, action in checked.items():
                db.execute(
                    "DELETE FROM offload_rules WHERE lun IS ? AND initiator IS ? AND host IS ? AND offload = ?",
                    (scope.lun, scope.initiator, scope.host, offload),
                )
                db.execute(
                    "INSERT INTO offload_rules (lun, initiator, host, offload, support) VALUES (?, ?, ?, ?, ?)",
                    (scope.lun, scope.initiator, scope.host, offload, action == "support"),
                )
            if db.execute("SELECT count(*) FROM offload_rules").fetchone()[0] > MAX_RULES:
                raise PlayheadError(
                    "conflict", f"there are {MAX_RULES} offload rules", "make rules of hosts rather than of initiators"
                )

    def reset(self, scope: Scope | None, offloads: Iterable[str] = ()) -> int:
        """Drops the rules at exactly a scope, or all there are (None), of some offloads or of all. Returns how many there were."""
        chosen = [check_offload(offload) for offload in offloads] or list(OFFLOADS)
        at = scope or Scope()
        with self._catalogue.transaction() as db:
            return db.executemany(
                "DELETE FROM offload_rules WHERE offload = ? AND (? OR (lun IS ? AND initiator IS ? AND host IS ?))",
                [(offload, scope is None, at.lun, at.initiator, at.host) for offload in chosen],
            ).rowcount


def check_scope(lun: str | None, initiator: str | None, host: str | None) -> Scope:
    """A scope as it was asked for."""
    if initiator is not None and host is not None:
        raise invalid("a rule is for an initiator or for a host, not for both", "leave out one of them")
    return Scope(
        names.check_path(lun) if lun is not None else None,
        names.check_initiator(initiator) if initiator is not None else None,
        host,
    )


def no_host(name: str) -> PlayheadError:
    """There is no such host."""
    return not_found(
        f"there is no host {name[:80]!r}",
        "see `playhead host list`, or make it with `playhead host create NAME --initiator IQN`",
    )
