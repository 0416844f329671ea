"""The web server around the application: a socket of ours, and no signal handlers of its own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from playhead.errors import PlayheadError
from playhead.node import Address

DRAIN_S = 2
"""How long requests under way may go on at the stop."""


class ApiServer(uvicorn.Server):
    """uvicorn, with signals left to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(address: Address) -> socket.socket:
    """A listening socket; port 0 picks one."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise PlayheadError(
            "invalid", f"API: {address.host!r} is no address and no name that resolves to one"
        ) from error
    family, kind, protocol, _, where = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise bind_error(error, address) from error
    listener.setblocking(False)
    return listener


def bind_error(error: OSError, address: Address) -> PlayheadError:
    """Why an address could not be had."""
    import errno

    what = f"API: cannot listen on {address.text}: {error.strerror}"
    match error.errno:
        case errno.EADDRINUSE:
            return PlayheadError("address-in-use", what, "stop what listens there, or choose another port")
        case errno.EADDRNOTAVAIL:
            return PlayheadError("address-not-available", what, "choose an address of this machine")
        case errno.EACCES | errno.EPERM:
            return PlayheadError("permission", what, "ports below 1024 need privileges")
        case _:
            return PlayheadError("io", what)


def server(app: FastAPI) -> ApiServer:
    """The server, not yet running."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        h11_max_incomplete_event_size=64 << 10,
        limit_concurrency=256,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_S,
    )
    return ApiServer(config)
