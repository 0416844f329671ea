"""The REST API itself: who may call, how refusals look, and that its description is true."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import httpx
import pytest
from tests.appliance import Appliance, playhead

from playhead.api.app import schema

OPENAPI = Path(__file__).parents[2] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One service for questions that change nothing."""
    running = Appliance(tmp_path_factory.mktemp("api") / "store")
    with running:
        yield running
    assert not running.complaints()


def url(appliance: Appliance, path: str) -> str:
    return f"http://{appliance.addresses['api']}/api/v1{path}"


def test_the_checked_in_schema_is_current() -> None:
    assert json.loads(OPENAPI.read_text()) == schema(), "run `make openapi` and commit docs/openapi.json"


def test_the_service_serves_its_schema(service: Appliance) -> None:
    assert httpx.get(url(service, "/openapi.json")).json() == schema()


def test_refusals_are_problem_details(service: Appliance) -> None:
    answer = httpx.get(url(service, "/groups/none"))
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == 404
    assert problem["code"] == "not-found"
    assert problem["type"] == "urn:playhead:error:not-found"
    assert "none" in problem["detail"]
    assert problem["next_step"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nothing", None, 404),
        ("DELETE", "/status", None, 405),
        ("POST", "/groups", b"{", 422),
        ("POST", "/groups", b'{"name": 5}', 422),
        ("POST", "/groups", b'{"name": "x", "extra": 1}', 422),
        ("POST", "/groups", b'{"name": "' + b"x" * 70_000 + b'"}', 422),
        ("POST", "/groups", b'{"name": "x", "policy": {"window_ns": -1}}', 422),
        ("GET", "/groups/..%2f..%2fetc", None, 404),
    ],
)
def test_nonsense_is_refused_in_the_same_form(
    service: Appliance, method: str, path: str, body: bytes | None, status: int
) -> None:
    answer = httpx.request(method, url(service, path), content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["code"]
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_other_names_are_refused(service: Appliance, host: str) -> None:
    answer = httpx.get(url(service, "/status"), headers={"host": host})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:7480"])
def test_addresses_and_localhost_are_ours(service: Appliance, host: str) -> None:
    assert httpx.get(url(service, "/status"), headers={"host": host}).status_code == 200


def test_pages_of_other_sites_are_refused(service: Appliance) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = httpx.post(url(service, "/groups"), json={"name": "x"}, headers={"origin": origin})
        assert answer.status_code == 403, origin
    form = httpx.post(url(service, "/groups"), content=b'{"name": "x"}', headers={"content-type": "text/plain"})
    assert form.status_code == 422
    assert httpx.get(url(service, "/groups")).json() == []


def test_beyond_loopback_a_token_is_needed(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path / "store", "--api", "0.0.0.0:0", "--advertise", "127.0.0.1")
    with appliance:
        port = appliance.ready["api"].rpartition(":")[2]
        token_file = tmp_path / "store" / "token"
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        token = token_file.read_text().strip()
        env = {"PLAYHEAD_API": f"127.0.0.1:{port}"}
        assert playhead("group", "list", env=env).returncode == 7
        assert playhead("group", "list", env={**env, "PLAYHEAD_TOKEN": token + "x"}).returncode == 7
        assert playhead("group", "list", env={**env, "PLAYHEAD_TOKEN": token}).returncode == 0
        assert playhead("--token-file", str(token_file), "group", "list", env=env).returncode == 0
        answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/status")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        token_file.chmod(0o644)
        assert "chmod 600" in playhead("--token-file", str(token_file), "group", "list", env=env).stderr
    token_file.chmod(0o600)
    with appliance:
        assert token_file.read_text().strip() == token, "a restart keeps the token"


def test_a_job_can_be_followed_and_cancelled(appliance: Appliance) -> None:
    appliance.cli("group", "create", "db")
    appliance.cli("volume", "create", "db/v", "--size", "1M")
    job = httpx.post(url(appliance, "/groups/db/settle")).json()
    assert job["kind"] == "settle"
    cancelled = httpx.delete(url(appliance, f"/jobs/{job['id']}"))
    assert cancelled.status_code == 200
    assert appliance.cli("job", "show", job["id"])["object"] == "db"
    assert appliance.cli("job", "list")[0]["id"] == job["id"]
