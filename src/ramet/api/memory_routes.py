"""Routes of the ledger of memory, and the metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Query, Response

from ramet.api.edge import HostDep
from ramet.model.memory import HostMemory, MemoryHistory

router = APIRouter(tags=["memory"])

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/v1/memory", operation_id="memory", summary="Who holds how much memory")
async def memory(
    host: HostDep,
    vm: list[str] = Query(default=[], description="Only these VMs, with the sums of their lineages."),  # noqa: B008
    now: bool = Query(False, description="Measure all of it now, whatever that costs."),
) -> HostMemory:
    """Every process that holds guest RAM, its lineage's sums and the host's. Each row says when it was measured.

    VMs that are off have no row, and one that ends meanwhile is left out.
    """
    return await host.memory.view(vm, now)


@router.get("/v1/memory/history", operation_id="memory_history", summary="What memory was before")
async def memory_history(
    host: HostDep,
    vm: str | None = Query(None, description="Of this VM, by name or id; left out: of all together."),
    span: Literal["hour", "day"] = Query("hour", description="Every 10 seconds, or every 5 minutes."),
) -> MemoryHistory:
    """Since the daemon's start at most. A VM that is gone is found by its id, for a while."""
    return host.memory.history(vm, span)


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(host: HostDep) -> Response:
    """In the text format of Prometheus."""
    return Response(host.metrics.text(), media_type=METRICS_TYPE)
