"""Whether the service lives, whether it can answer, and its numbers."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from modalloy.serve.errors import Refusal
from modalloy.serve.service import Service

HEALTH = "/health/"
"""What their routes begin with, which are open to everybody."""


def health_router(service: Service) -> APIRouter:
    """The routes of health and of metrics.

    Args:
        service: whose.
    """
    router = APIRouter()

    @router.get(HEALTH + "live", summary="Whether the service lives")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get(HEALTH + "ready", summary="Whether the service can answer")
    async def ready() -> dict[str, str]:
        if not service.ready:
            raise Refusal(503, "the service is stopping.", "stopping", {"Retry-After": "5"})
        return {"status": "ready"}

    @router.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
