"""What belongs to the node: its settings, each from a flag, the environment or the TOML file, in this order.

docs/configuration.md lists them; a test holds the page and this module together.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from playhead.errors import PlayheadError, invalid

DEFAULT_CONFIG = Path("/etc/playhead/playhead.toml")
DEFAULT_API = "127.0.0.1:7480"
MAX_PORTALS = 64


@dataclass(frozen=True)
class Address:
    """Where a front end listens."""

    host: str
    port: int

    @property
    def text(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name counts only if everything it stands for is loopback."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            pass
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)

    @property
    def is_wildcard(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False


def parse_address(text: str, what: str) -> Address:
    """`127.0.0.1:3260`, `[::1]:3260`, `name:3260`; an `http://` in front is allowed, for PLAYHEAD_API serves the CLI too."""
    bare = text.strip().removeprefix("http://").rstrip("/")
    host, colon, port = bare.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise invalid(f"{what} {text!r}: an IPv6 address needs brackets", f"write [{host}]:{port}")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise invalid(f"{what} {text!r} is not ADDRESS:PORT", "write it like 127.0.0.1:3260 (port 0 picks a free one)")
    return Address(host, int(port))


def parse_portals(value: Any) -> tuple[Address, ...]:
    """The iSCSI portals: one address, several separated by commas, or a list of them; `off`, alone, is none at all."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise invalid(f"iscsi {value!r} is no list of addresses", 'write ["10.0.0.1:3260", "10.1.0.1:3260"]')
    words = [word.strip() for part in parts for word in part.split(",")]
    if [word.lower() for word in words] == ["off"]:
        return ()
    portals = tuple(parse_address(word, "iscsi") for word in words)
    if not 1 <= len(portals) <= MAX_PORTALS:
        raise invalid(f"iscsi {value!r} has {len(portals)} addresses", f"give 1 to {MAX_PORTALS}, or 'off'")
    for at, portal in enumerate(portals):
        if portal.port and portal in portals[:at]:
            raise invalid(f"iscsi {portal.text} is named twice", "name each portal once")
    return portals


@dataclass(frozen=True)
class Settings:
    """The node's settings. An address may be None, and the portals none at all: that front end is off."""

    store: Path = Path("/var/lib/playhead")
    iscsi: tuple[Address, ...] = (Address("127.0.0.1", 3260),)
    """The portals; every target is reached by each of them."""
    nbd: Address | None = Address("127.0.0.1", 10809)
    api: Address = field(default_factory=lambda: parse_address(DEFAULT_API, "api"))
    advertise: str = ""
    """The host in URLs; empty: the bound address, or this machine's name when bound to all of them."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names by which the API may be called."""
    iqn_prefix: str = "iqn.2026-11.io.playhead"
    auth: str = "none"
    """Whether iSCSI initiators must prove who they are: `none` or `chap`."""
    unmapped_volumes: str = "visible"
    """Whether a volume that is mapped to no host is seen by every initiator or by none."""
    space_low_bytes: int = 0
    """Free bytes below which the disk under a journal is nearly full; 0: a tenth of it."""
    segment_bytes: int = 0
    """Of groups created from now on; 0: the engine's default."""
    log_level: str = "info"
    log_format: str = "human"
    stop_deadline_s: float = 10.0


SETTING_NAMES = tuple(f.name for f in fields(Settings))

_LEVELS = ("debug", "info", "warning", "error")
_FORMATS = ("human", "json")
_CHOICES = {
    "log_level": _LEVELS,
    "log_format": _FORMATS,
    "auth": ("none", "chap"),
    "unmapped_volumes": ("visible", "hidden"),
}


def load(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ, config: Path | None = None) -> Settings:
    """The settings in force. `flags` holds only what was given on the command line."""
    values: dict[str, Any] = {}
    chosen = config or (Path(environ["PLAYHEAD_CONFIG"]) if environ.get("PLAYHEAD_CONFIG") else None)
    if chosen is not None or DEFAULT_CONFIG.exists():
        values |= _from_file(chosen or DEFAULT_CONFIG)
    for name in SETTING_NAMES:
        given = environ.get(f"PLAYHEAD_{name.upper()}")
        if given:
            values[name] = given
    # A flag that may be repeated and was not given is no value, but no None either.
    values |= {name: value for name, value in flags.items() if value is not None and value != ()}
    return Settings(**{name: _typed(name, value) for name, value in values.items()})


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise invalid(
            f"settings file {path} cannot be read ({error.strerror})", "name another with --config"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise invalid(f"settings file {path} is not TOML ({error})", "mend that line") from error
    unknown = sorted(set(values) - set(SETTING_NAMES))
    if unknown:
        raise invalid(
            f"settings file {path} has an unknown setting {unknown[0]!r}",
            f"the settings are {', '.join(SETTING_NAMES)}",
        )
    return values


def _typed(name: str, value: Any) -> Any:
    match name:
        case "store":
            return Path(str(value)).expanduser().absolute()
        case "iscsi":
            return parse_portals(value)
        case "nbd":
            return None if str(value).lower() == "off" else parse_address(str(value), name)
        case "api":
            return parse_address(str(value), name)
        case "allowed_hosts":
            parts = value.split(",") if isinstance(value, str) else value
            if not isinstance(parts, list | tuple):
                raise invalid(f"allowed_hosts {value!r} is not a list of names", 'write ["name", …]')
            return tuple(str(part).strip().lower() for part in parts if str(part).strip())
        case "segment_bytes":
            return _segment_bytes(value)
        case "stop_deadline_s":
            try:
                seconds = float(value)
            except (TypeError, ValueError):
                seconds = -1.0
            if not 0.1 <= seconds <= 600:
                raise invalid(f"stop_deadline_s {value!r} is not between 0.1 and 600", "10 suits most")
            return seconds
        case "space_low_bytes":
            return _space_low_bytes(value)
        case "log_level" | "log_format" | "auth" | "unmapped_volumes":
            allowed = _CHOICES[name]
            if value not in allowed:
                raise invalid(f"{name} {value!r} is unknown", f"it is one of {', '.join(allowed)}")
            return value
        case _:
            return str(value)


def _segment_bytes(value: Any) -> int:
    from playhead.sizes import parse_size

    size = value if isinstance(value, int) else parse_size(str(value))
    if size and (size & (size - 1) or not 64 << 10 <= size <= 1 << 30):
        raise invalid(f"segment_bytes {value!r} is not a power of two from 64 KiB to 1 GiB", "64 MiB suits most")
    return size


def _space_low_bytes(value: Any) -> int:
    from playhead.sizes import parse_size

    size = value if isinstance(value, int) else parse_size(str(value))
    if not 0 <= size < 1 << 63:
        raise invalid(f"space_low_bytes {value!r} is no size", "0 stands for a tenth of the disk")
    return size


def url_host(bound: Address, settings: Settings) -> str:
    """The host that a client of ours can use, with brackets if it is an IPv6 address."""
    host = settings.advertise or bound.host
    if not settings.advertise and bound.is_wildcard:
        host = _own_address()
    return f"[{host}]" if ":" in host else host


def _own_address() -> str:
    """This machine's name if others can be expected to resolve it, else its first address that is not loopback."""
    name = socket.getfqdn()
    if "." in name and not name.startswith("localhost"):
        return name
    try:
        for entry in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            address = str(entry[4][0])
            if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
                return address
    except OSError:
        pass
    # No packet is sent by connecting a datagram socket; the kernel only chooses the source address.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def store_error(error: OSError, path: Path, what: str) -> PlayheadError:
    """An error of the system about a file of the store, in our words."""
    import errno

    code = {errno.ENOSPC: "no-space", errno.EACCES: "permission", errno.EPERM: "permission", errno.EROFS: "permission"}
    step = {
        "no-space": "make room on that file system",
        "permission": "run as a user who may write there, or give another --store",
        "io": "look at that file system, or give another --store",
    }
    kind = code.get(error.errno or 0, "io")
    return PlayheadError(kind, f"{what} {path}: {error.strerror}", step[kind])
