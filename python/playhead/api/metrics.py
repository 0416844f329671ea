"""Metrics for Prometheus: at `/metrics`, in its text format, to whoever may call the rest of the API."""

from fastapi import APIRouter, Response

from playhead import metrics
from playhead.api.state import TheAppliance

router = APIRouter(tags=["metrics"])


@router.get("/metrics", include_in_schema=False)
def show_metrics(appliance: TheAppliance) -> Response:
    """Everything that is counted or measured."""
    return Response(metrics.expose(appliance), media_type=metrics.CONTENT_TYPE)
