"""The REST API under /api/v1: one router per noun, over the appliance. docs/rest.md describes it, docs/openapi.json is its schema."""

from playhead.api.app import create_app

__all__ = ["create_app"]
