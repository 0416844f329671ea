"""The application: routers, the guard before them, and the schema."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from playhead import _native
from playhead.api import (
    array,
    bookmark,
    copy,
    group,
    host,
    image,
    job,
    journal,
    metrics,
    point,
    policy,
    status,
    target,
    volume,
)
from playhead.api.guard import Guard
from playhead.api.problem import PROBLEM_RESPONSES, install
from playhead.appliance import Appliance

PREFIX = "/api/v1"


def create_app(
    appliance: Appliance | None, token: str | None = None, allowed_hosts: frozenset[str] = frozenset()
) -> FastAPI:
    """The API over `appliance`. Without one it only describes itself. With a token every request must bear it."""
    app = FastAPI(
        title="Playhead",
        version=_native.version(),
        description="Continuous data protection for block storage.",
        openapi_url=f"{PREFIX}/openapi.json",
        # The usual pages load scripts from elsewhere; an appliance has no elsewhere.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        responses=PROBLEM_RESPONSES,
    )
    app.state.appliance = appliance
    for noun in (status, group, volume, bookmark, point, image, copy, journal, target, host, array, policy, job):
        app.include_router(noun.router, prefix=PREFIX)
    # Where those who scrape look for it.
    app.include_router(metrics.router)
    install(app)
    app.add_middleware(Guard, token=token, allowed_hosts=allowed_hosts)
    return app


def schema() -> dict[str, Any]:
    """The OpenAPI document, as docs/openapi.json has it."""
    return create_app(None).openapi()
