"""The notify protocol of the service supervisor (sd_notify(3)): one datagram per message to $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> bool:
    """Tells the supervisor, if there is one. Never raises: a supervisor that went away is no reason to stop."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(1.0)
            channel.sendto("\n".join(assignments).encode(), address)
    except OSError:
        return False
    return True
