"""Who may call: a token where the API can be reached from elsewhere, and never a web page of somebody else's.

A page in an administrator's browser can send requests to 127.0.0.1, by a name of its own that resolves there (DNS rebinding) or simply as a
cross-site form. So the Host must be an address or one of our names, and an Origin, where there is one, must be ours.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from playhead.api.problem import response
from playhead.errors import PlayheadError

MAX_BODY_BYTES = 64 << 10


class Guard:
    """ASGI middleware before everything."""

    def __init__(self, app: ASGIApp, token: str | None, allowed_hosts: frozenset[str]) -> None:
        self._app = app
        self._token = token.encode() if token else None
        self._allowed_hosts = allowed_hosts | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None:
            extra = {"www-authenticate": 'Bearer realm="playhead"'} if refusal.code == "unauthorised" else None
            await response(refusal, extra)(scope, receive, send)
            return
        await self._app(scope, _limited(receive), send)

    def _refusal(self, headers: Headers) -> PlayheadError | None:
        host = headers.get("host", "")
        if not self._is_ours(_host_name(host)):
            return PlayheadError(
                "forbidden",
                f"the service is not called {host[:80]!r}",
                "use its address, or add the name to allowed_hosts",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return PlayheadError(
                "forbidden", "the request comes from a page of another site", "call the API from a program or the CLI"
            )
        if self._token is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            matches = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token)
            if scheme.lower() != "bearer" or not matches:
                return PlayheadError(
                    "unauthorised",
                    "the service wants its token",
                    "send it as 'Authorization: Bearer …'; it is in the file `token` of the store",
                )
        try:
            if int(headers.get("content-length", "0")) > MAX_BODY_BYTES:
                return PlayheadError("invalid", f"a body of more than {MAX_BODY_BYTES} bytes", "no request needs that")
        except ValueError:
            return PlayheadError("invalid", "the content length is not a number")
        return None

    def _is_ours(self, name: str) -> bool:
        if name in self._allowed_hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _limited(receive: Receive) -> Receive:
    """A body sent in chunks has no length in advance: it ends at the limit."""
    left = MAX_BODY_BYTES

    async def limited() -> Message:
        nonlocal left
        message = await receive()
        if message["type"] == "http.request":
            left -= len(message.get("body", b""))
            if left < 0:
                raise PlayheadError("invalid", f"a body of more than {MAX_BODY_BYTES} bytes", "no request needs that")
        return message

    return limited
