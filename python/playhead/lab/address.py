"""`iscsi://[USER[%SECRET]@]HOST:PORT/IQN/LUN`, the address that libiscsi's tools take too."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from playhead.errors import invalid
from playhead.node import Address, parse_address

LUN_MAX = 16383
"""What flat addressing reaches (SAM-5 4.7.7.3)."""
NAME_BYTES_MAX = 223
_URL = re.compile(r"iscsi://(?:(?P<proof>[^/@]*)@)?(?P<address>[^/@]+)/(?P<target>[^/]+)/(?P<lun>[^/]+)/?")
_NAME = re.compile(r"(iqn|eui|naa)\.[\x21-\x7e\x80-\U0010ffff]+")


@dataclass(frozen=True)
class LunAddress:
    """One LUN of one target, and whom to be."""

    address: Address
    target: str
    lun: int
    user: str | None = None
    secret: str | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """Without the secret."""
        return f"iscsi://{self.address.text}/{self.target}/{self.lun}"


def name(text: str, what: str) -> str:
    """An iSCSI name (RFC 7143 4.2.7)."""
    if not _NAME.fullmatch(text) or len(text.encode()) > NAME_BYTES_MAX:
        raise invalid(f"{what} {text!r} is not an iSCSI name", "write it like iqn.2026-11.org.example:disks")
    return text


def parse(text: str) -> LunAddress:
    """Raises `invalid`. The secret is never part of the message."""
    found = _URL.fullmatch(text)
    if not found:
        shown = re.sub(r"%[^/@]*@", "%…@", text)
        raise invalid(f"{shown!r} is not a LUN's address", "write iscsi://[USER[%SECRET]@]HOST:PORT/IQN/LUN")
    lun = found["lun"]
    if not lun.isascii() or not lun.isdigit() or int(lun) > LUN_MAX:
        raise invalid(f"{lun!r} is not a LUN", f"it is a number from 0 to {LUN_MAX}")
    address = found["address"]
    if not re.search(r":\d+$", address):
        address += ":3260"
    user, _, secret = (found["proof"] or "").partition("%")
    return LunAddress(
        parse_address(address, "portal"), name(found["target"], "target"), int(lun), user or None, secret or None
    )
