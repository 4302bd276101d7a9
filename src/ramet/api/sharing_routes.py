"""Routes of page sharing: whether the kernel merges pages of VMs that are not related."""

from __future__ import annotations

from fastapi import APIRouter

from ramet.api.edge import HostDep, UidDep
from ramet.model.host import Task
from ramet.model.sharing import PageSharingView, SetPageSharing

router = APIRouter(prefix="/v1/host", tags=["memory"])


@router.get("/page-sharing", operation_id="page_sharing", summary="Page sharing, its gain and cost")
async def page_sharing(host: HostDep) -> PageSharingView:
    """What the kernel's KSM saves and takes, on the whole host and for each VM; or why there is none."""
    return await host.sharing.view()


@router.put("/page-sharing", status_code=202, operation_id="set_page_sharing", summary="Switch page sharing")
async def set_page_sharing(request: SetPageSharing, host: HostDep, uid: UidDep) -> Task:
    """`host`: among all guests, those to come included. `off`, the default: inside lineages only, by forking.

    Off unmerges VM by VM, which takes memory: refused, with what is missing, when there is not enough. KSM has no
    domains, so there is nothing between the two.
    """
    return await host.sharing.set(request, uid)
