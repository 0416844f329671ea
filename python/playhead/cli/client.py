"""The CLI's side of the REST API."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from playhead.errors import KINDS, PlayheadError
from playhead.node import DEFAULT_API, Address, parse_address

TIMEOUT_S = 60.0
PREFIX = "/api/v1"


class Cli:
    """What every command gets: the service."""

    def __init__(self, api: str | None, token_file: str | None) -> None:
        self._api = api or DEFAULT_API
        self._token_file = token_file

    def _address(self) -> Address:
        address = parse_address(self._api, "api")
        if address.is_wildcard:
            # The service's own setting, read as the CLI's: it is on this machine.
            address = Address("::1" if ":" in address.host else "127.0.0.1", address.port)
        return address

    def _token(self) -> str | None:
        if self._token_file:
            from playhead.store import read_token

            return read_token(Path(self._token_file))
        return os.environ.get("PLAYHEAD_TOKEN") or None

    def get(self, *path: str, **query: Any) -> Any:
        return self._ask("GET", path, query=query)

    def post(self, *path: str, body: dict[str, Any] | None = None) -> Any:
        return self._ask("POST", path, body=body)

    def put(self, *path: str, body: dict[str, Any]) -> Any:
        return self._ask("PUT", path, body=body)

    def patch(self, *path: str, body: dict[str, Any]) -> Any:
        return self._ask("PATCH", path, body=body)

    def delete(self, *path: str, **query: Any) -> Any:
        return self._ask("DELETE", path, query=query)

    def _ask(
        self,
        method: str,
        path: tuple[str, ...],
        query: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Any:
        # The standard library's client: a command in a script's loop must start fast, and needs nothing more.
        import http.client

        address = self._address()
        headers = {"accept": "application/json"}
        token = self._token()
        if token:
            headers["authorization"] = f"Bearer {token}"
        if body is not None:
            headers["content-type"] = "application/json"
        connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
        try:
            connection.request(
                method, _target(path, query or {}), json.dumps(body) if body is not None else None, headers
            )
            response = connection.getresponse()
            status, text = response.status, response.read().decode("utf-8", "replace")
        except TimeoutError as error:
            raise PlayheadError(
                "unreachable",
                f"the service at {address.text} did not answer within {TIMEOUT_S:.0f} s",
                "look at its log",
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise PlayheadError(
                "unreachable",
                f"no service answers at {address.text} ({error})",
                "start `playhead serve`, or say where it is with PLAYHEAD_API",
            ) from error
        finally:
            connection.close()
        if 200 <= status < 300:
            return _parsed(text, address) if text else None
        raise _refusal(status, text, address)


def _target(path: tuple[str, ...], query: dict[str, Any]) -> str:
    """The request's path and query."""
    # A segment of dots alone would be resolved away on the wire; no object is called that, so the service says.
    segments = [
        quote(part, safe="").replace(".", "%2E") if not part.strip(".") else quote(part, safe="") for part in path
    ]
    given = {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in query.items()
        if value is not None
    }
    return f"{PREFIX}/{'/'.join(segments)}" + (f"?{urlencode(given, doseq=True)}" if given else "")


def _parsed(text: str, address: Address) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PlayheadError(
            "unreachable", f"what answers at {address.text} is not Playhead", "check PLAYHEAD_API"
        ) from error


def _refusal(status: int, text: str, address: Address) -> PlayheadError:
    try:
        problem = json.loads(text)
        code, detail, step = problem["code"], str(problem["detail"]), str(problem.get("next_step", ""))
    except (ValueError, KeyError, TypeError):
        return PlayheadError(
            "unreachable", f"what answers at {address.text} is not Playhead (status {status})", "check PLAYHEAD_API"
        )
    return PlayheadError(code if code in KINDS else "internal", detail, step)
