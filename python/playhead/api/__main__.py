"""`python -m playhead.api` prints the OpenAPI document; `make openapi` keeps docs/openapi.json with it."""

import json

from playhead.api.app import schema

print(json.dumps(schema(), indent=2, sort_keys=True))
