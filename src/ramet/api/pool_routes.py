"""Routes of pools: clones that are ready before anyone asks."""

from __future__ import annotations

from fastapi import APIRouter

from ramet.api.edge import HostDep
from ramet.model.pool import PoolView, SetPool

router = APIRouter(prefix="/v1", tags=["pools"])


@router.get("/pools", operation_id="list_pools", summary="List pools")
async def list_pools(host: HostDep) -> list[PoolView]:
    """All pools, by their VMs' names: how many clones are ready, were taken, how fast more come, what they cost."""
    return await host.list_pools()


@router.put("/vms/{ref}/pool", operation_id="set_pool", summary="Keep a pool of a VM's clones")
async def set_pool(ref: str, request: SetPool, host: HostDep) -> PoolView:
    """Clones are kept loaded and paused while the VM is frozen; a clone request takes one, and another follows.

    It answers at once: the pool fills in the background, as tasks of the kind `pool.refill`. Size 0 gives it up.
    """
    return await host.set_pool(ref, request)


@router.delete("/vms/{ref}/pool", status_code=204, operation_id="remove_pool", summary="Give a VM's pool up")
async def remove_pool(ref: str, host: HostDep) -> None:
    """The clones that wait in it are gone when this answers; those that were taken are VMs like every other."""
    await host.remove_pool(ref)
