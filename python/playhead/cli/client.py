"""The CLI's side of the REST API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from playhead.errors import KINDS, PlayheadError
from playhead.node import DEFAULT_API, Address, parse_address

TIMEOUT_S = 60.0


class Cli:
    """What every command gets: the service."""

    def __init__(self, api: str | None, token_file: str | None) -> None:
        self._api = api or DEFAULT_API
        self._token_file = token_file

    def _url(self) -> str:
        address = parse_address(self._api, "api")
        if address.is_wildcard:
            # The service's own setting, read as the CLI's: it is on this machine.
            address = Address("::1" if ":" in address.host else "127.0.0.1", address.port)
        return f"http://{address.text}/api/v1"

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

    def delete(self, *path: str, **query: Any) -> Any:
        return self._ask("DELETE", path, query=query)

    def _ask(
        self,
        method: str,
        path: tuple[str, ...],
        query: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Any:
        from urllib.parse import quote

        import httpx

        url = self._url()
        token = self._token()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # A segment of dots would be resolved away on the wire; no object is called that.
        segments = [
            quote(segment, safe="").replace(".", "%2E") if set(segment) == {"."} else quote(segment, safe="")
            for segment in path
        ]
        query = {key: value for key, value in (query or {}).items() if value is not None}
        try:
            with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
                response = client.request(
                    method, f"{url}/{'/'.join(segments)}", params=query, json=body, headers=headers
                )
        except httpx.TimeoutException as error:
            raise PlayheadError(
                "unreachable", f"the service at {url} did not answer within {TIMEOUT_S:.0f} s", "look at its log"
            ) from error
        except httpx.HTTPError as error:
            raise PlayheadError(
                "unreachable",
                f"no service answers at {url} ({error})",
                "start `playhead serve`, or say where it is with PLAYHEAD_API",
            ) from error
        if response.is_success:
            return response.json() if response.content else None
        raise _refusal(response.status_code, response.text, url)


def _refusal(status: int, text: str, url: str) -> PlayheadError:
    import json

    try:
        problem = json.loads(text)
        code, detail, step = problem["code"], str(problem["detail"]), str(problem.get("next_step", ""))
    except (ValueError, KeyError, TypeError):
        return PlayheadError(
            "unreachable", f"what answers at {url} is not Playhead (status {status})", "check PLAYHEAD_API"
        )
    return PlayheadError(code if code in KINDS else "internal", detail, step)
