"""Access: who sees which disk, what it proves itself with, and which offloads it gets. What the catalogue says is put in force here.

Every change goes the same way: the catalogue first, then the whole tables to the front ends, which tell the sessions that are concerned. So what is
in force is always what the catalogue says, and a restart changes nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from playhead import log, names
from playhead.catalogue import Catalogue
from playhead.errors import conflict, invalid, not_found
from playhead.export import Exported, Exports, Tables
from playhead.host import Chap, Hosts, Mapping, check_chap
from playhead.masking import Masking
from playhead.node import Settings, parse_address
from playhead.policy import OFFLOADS, OffloadName, OffloadPolicy, Rule, Scope, check_scope
from playhead.resources import ChapUser, Host, HostMapping, OffloadInForce, OffloadRule, PolicyInForce, Redirection

_log = log.get("access")


@dataclass(frozen=True)
class ChapRequest:
    """Credentials as they were given, not yet checked."""

    user: str
    secret: str
    mutual_user: str | None = None
    mutual_secret: str | None = None

    def check(self, whose: str) -> Chap:
        return check_chap(whose, self.user, self.secret, self.mutual_user, self.mutual_secret)


class Access:
    """Hosts, mappings, credentials, redirections and offload rules of this appliance."""

    def __init__(self, catalogue: Catalogue, settings: Settings, exports: Exports) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._exports = exports
        self._hosts = Hosts(catalogue)
        self._policy = OffloadPolicy(catalogue)
        exports.govern(self._tables)

    # In force.

    def _masking(self, disks: Iterable[Exported]) -> Masking:
        return Masking(
            (disk.place for disk in disks),
            self._hosts.all(),
            self._hosts.mappings(),
            hidden=self._settings.unmapped_volumes == "hidden",
        )

    def _tables(self, disks: Sequence[Exported]) -> Tables:
        """What the front ends are to do with these disks."""
        hosts = self._hosts.all()
        masking = self._masking(disks)
        rules = self._policy.rules()
        uuids = {disk.place.path: disk.uuid for disk in disks}
        return Tables(
            rules=rules.native({host.name: host.initiators for host in hosts}, uuids),
            masking=masking.native(),
            seen_by={disk.place.path: masking.hosts(disk.place) for disk in disks},
            chap_required=self._settings.auth == "chap",
            discovery=self._hosts.discovery(),
            chap={initiator: host.chap for host in hosts if host.chap for initiator in host.initiators},
            redirections=self._redirections(),
        )

    def forget_disk(self, path: str) -> None:
        """A disk is gone for good: whatever gets its path later inherits nothing."""
        with self._catalogue.transaction() as db:
            db.execute("DELETE FROM mappings WHERE path = ?", (path,))
            db.execute("DELETE FROM offload_rules WHERE lun = ?", (path,))

    def forget_target(self, iqn: str) -> None:
        with self._catalogue.transaction() as db:
            db.execute("DELETE FROM redirections WHERE iqn = ?", (iqn,))

    def keep_only(self, group: str, paths: Iterable[str]) -> None:
        """Forgets what a crash left of disks that a group has no longer."""
        known = set(paths)
        with self._catalogue.transaction() as db:
            found = {path for (path,) in db.execute("SELECT path FROM mappings UNION SELECT lun FROM offload_rules")}
        for path in found:
            if path is not None and path.startswith(f"{group}/") and path not in known:
                self.forget_disk(path)

    # Hosts.

    def hosts(self) -> list[Host]:
        mappings = self._hosts.mappings()
        return [
            Host.of(host, [self._mapping(m) for m in mappings if m.host == host.name]) for host in self._hosts.all()
        ]

    def host(self, name: str) -> Host:
        host = self._hosts.get(name)
        return Host.of(host, [self._mapping(m) for m in self._hosts.mappings() if m.host == name])

    def create_host(self, name: str, initiators: Sequence[str]) -> Host:
        self._hosts.create(name, initiators)
        self._exports.enforce()
        _log.info("host created", host=name, initiators=len(initiators))
        return self.host(name)

    def delete_host(self, name: str, force: bool) -> list[str]:
        """Forgets a host; returns what the administrator should know."""
        mine = [mapping.path for mapping in self._hosts.mappings() if mapping.host == name]
        self._hosts.delete(name, force)
        self._exports.enforce()
        _log.info("host deleted", host=name)
        return self._now_open(mine)

    def add_initiator(self, host: str, initiator: str) -> Host:
        self._hosts.add_initiator(host, initiator)
        self._exports.enforce()
        return self.host(host)

    def remove_initiator(self, host: str, initiator: str) -> Host:
        self._hosts.remove_initiator(host, initiator)
        self._exports.enforce()
        return self.host(host)

    # Mappings.

    def map(self, host: str, path: str, lun: int | None, read_only: bool) -> HostMapping:
        """Maps a disk to a host, under `lun` or a number that is free."""
        names.check_path(path)
        self._hosts.get(host)
        with self._exports.lock:
            disks = self._exports.disks()
            place = next((disk.place for disk in disks if disk.place.path == path), None)
            if place is None:
                raise not_found(
                    f"there is no LUN {path[:200]!r} in service", "see `playhead target list` for what is exported"
                )
            if any(disk.ublk is not None for disk in disks if disk.place.path == path):
                raise conflict(
                    f"{path} is a block device of this host, which would lose it to host {host}",
                    f"unmount it and take it from there first: `playhead volume set {path} --no-ublk`",
                )
            taken = self._masking(disks).taken(host, path)
            if lun is not None and lun in taken:
                raise conflict(
                    f"LUN {lun} of {taken[lun].iqn} is {taken[lun].path} for host {host}",
                    "choose another --lun, or leave it out to have one chosen",
                )
            before = next((m.lun for m in self._hosts.mappings() if (m.path, m.host) == (path, host)), place.number)
            number = lun if lun is not None else _free(before, taken)
            mapping = Mapping(path, host, number, read_only)
            self._hosts.map(mapping)
            self._exports.enforce()
        _log.info("LUN mapped", lun=path, host=host, number=number, read_only=read_only)
        return self._mapping(mapping)

    def unmap(self, host: str, path: str) -> list[str]:
        """Takes a disk from a host; returns what the administrator should know."""
        self._hosts.unmap(host, path)
        self._exports.enforce()
        _log.info("LUN unmapped", lun=path, host=host)
        return self._now_open([path])

    def _mapping(self, mapping: Mapping) -> HostMapping:
        place = next((disk.place for disk in self._exports.disks() if disk.place.path == mapping.path), None)
        return HostMapping(
            path=mapping.path,
            host=mapping.host,
            lun=mapping.lun,
            read_only=mapping.read_only,
            iqn=place.iqn if place else None,
            iscsi_url=self._exports.iscsi_url(place.iqn, mapping.lun) if place else None,
        )

    def _now_open(self, paths: Iterable[str]) -> list[str]:
        """What no mapping covers any longer, and what is in the way of seeing it."""
        disks = self._exports.disks()
        masking = self._masking(disks)
        warnings = []
        for disk in disks:
            place = disk.place
            if place.path not in paths and place.volume not in paths:
                continue
            if masking.hosts(place) is None:
                warnings.append(
                    f"{place.path} is mapped to no host now, so every initiator sees it, and NBD clients too "
                    "(unmapped_volumes = visible)"
                )
            warnings += [
                f"host {host} does not see {place.path}: its LUN {number} of {place.iqn} is {other.path}"
                for host, number, other in masking.shadowed(place)
            ]
        return warnings

    # Credentials.

    def set_chap(self, host: str, request: ChapRequest | None) -> Host:
        """What the initiators of a host prove themselves with from their next login on."""
        self._hosts.get(host)
        self._hosts.set_chap(host, request.check(f"host {host}") if request else None)
        self._exports.enforce()
        _log.info("CHAP credentials changed", host=host)
        return self.host(host)

    def discovery(self) -> ChapUser | None:
        chap = self._hosts.discovery()
        return ChapUser(user=chap.user, mutual_user=chap.mutual_user) if chap else None

    def set_discovery(self, request: ChapRequest | None) -> ChapUser | None:
        """What every initiator proves itself with before it is told which targets there are."""
        self._hosts.set_discovery(request.check("discovery") if request else None)
        self._exports.enforce()
        _log.info("CHAP credentials changed", host="discovery")
        return self.discovery()

    # Redirection.

    def _redirections(self) -> dict[str, tuple[str, bool]]:
        with self._catalogue.transaction() as db:
            rows = db.execute("SELECT iqn, address, permanent FROM redirections").fetchall()
        return {iqn: (address, bool(permanent)) for iqn, address, permanent in rows}

    def redirection(self, iqn: str) -> Redirection | None:
        found = self._redirections().get(iqn)
        return Redirection(address=found[0], permanent=found[1]) if found else None

    def redirect(self, iqn: str, redirection: Redirection | None) -> None:
        """Sends those who log in to a target elsewhere, or no longer. Sessions that exist stay."""
        if iqn not in self._exports.targets():
            raise not_found(f"there is no target {iqn[:230]!r}", "see `playhead target list`")
        if redirection is not None:
            redirection = Redirection(address=check_portal(redirection.address), permanent=redirection.permanent)
        with self._catalogue.transaction() as db:
            db.execute("DELETE FROM redirections WHERE iqn = ?", (iqn,))
            if redirection is not None:
                db.execute(
                    "INSERT INTO redirections VALUES (?, ?, ?)", (iqn, redirection.address, redirection.permanent)
                )
        self._exports.enforce()
        _log.info("redirection changed", target=iqn, to=redirection.address if redirection else None)

    # Offload policy.

    def rules(self) -> list[OffloadRule]:
        return [OffloadRule.of(rule) for rule in self._policy.rules().all()]

    def set_rules(
        self, lun: str | None, initiator: str | None, host: str | None, actions: dict[str, str]
    ) -> list[OffloadRule]:
        """Decides offloads at a scope."""
        scope = check_scope(lun, initiator, host)
        if scope.lun is not None and scope.lun not in self._paths():
            raise not_found(f"there is no LUN {scope.lun[:200]!r} in service", "see `playhead target list`")
        self._policy.set(scope, actions)
        self._exports.enforce()
        _log.info("offload policy changed", scope=scope.text, **{k.replace("-", "_"): v for k, v in actions.items()})
        return self.rules()

    def reset_rules(
        self,
        lun: str | None,
        initiator: str | None,
        host: str | None,
        offloads: Sequence[str] = (),
        everywhere: bool = False,
    ) -> list[OffloadRule]:
        """Drops the rules at exactly a scope, or everywhere."""
        scope = check_scope(lun, initiator, host)
        if everywhere and scope != Scope():
            raise invalid("all rules, or those of one scope?", "leave out the scope, or `all`")
        count = self._policy.reset(None if everywhere else scope, offloads)
        self._exports.enforce()
        _log.info("offload rules dropped", scope="everywhere" if everywhere else scope.text, count=count)
        return self.rules()

    def in_force(self, lun: str | None, initiator: str | None, host: str | None) -> PolicyInForce:
        """What somebody gets of a LUN, and by which rule; with what that has led to so far."""
        scope = check_scope(lun, initiator, host)
        if scope.lun is not None and scope.lun not in self._paths():
            raise not_found(f"there is no LUN {scope.lun[:200]!r} in service", "see `playhead target list`")
        of_host = scope.host
        if of_host is not None:
            members = set(self._hosts.get(of_host).initiators)
        elif scope.initiator is not None:
            of_host = self._hosts.of_initiator(scope.initiator)
            members = {scope.initiator}
        else:
            members = set()
        rules = self._policy.rules()
        counts = [
            count
            for count in self._exports.offload_counts()
            if scope.lun in (None, count.lun) and (count.initiator in members or scope == Scope(scope.lun))
        ]

        def one(offload: OffloadName) -> OffloadInForce:
            rule: Rule | None = rules.decide(offload, scope.lun, scope.initiator, of_host)
            mine = [count for count in counts if count.offload == offload]
            return OffloadInForce(
                offload=offload,
                action=rule.action if rule else "support",
                rule=OffloadRule.of(rule) if rule else None,
                served=sum(count.served for count in mine),
                rejected=sum(count.rejected for count in mine),
                saved_bytes=sum(count.saved_bytes for count in mine),
            )

        return PolicyInForce(
            lun=scope.lun, initiator=scope.initiator, host=of_host, offloads=[one(offload) for offload in OFFLOADS]
        )

    def _paths(self) -> set[str]:
        return {disk.place.path for disk in self._exports.disks()}


_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
"""A name, or an IPv4 address."""


def check_portal(text: str) -> str:
    """The address of a portal, as initiators are told it (TargetAddress, RFC 7143 13.8)."""
    address = parse_address(text, "the portal")
    if address.port == 0:
        raise invalid(f"the portal {text!r} needs a port", f"write it like {address.host}:3260")
    if not _HOST.fullmatch(address.host):
        try:
            ipaddress.IPv6Address(address.host.replace("%", "/"))
        except ValueError:
            raise invalid(
                f"the portal {text[:300]!r} is at no address and no name of a machine", "write it like 192.0.2.7:3260"
            ) from None
    return address.text


def _free(preferred: int, taken: Iterable[int]) -> int:
    """The preferred number if it is free, else the lowest that is; the catalogue refuses one that is too high."""
    used = set(taken)
    return preferred if preferred not in used else next(n for n in range(len(used) + 1) if n not in used)
