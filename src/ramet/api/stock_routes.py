"""Routes of what VMs are made from and plugged into: images and port groups."""

from __future__ import annotations

from fastapi import APIRouter

from ramet.api.edge import HostDep
from ramet.model.host import Image, Network, Task
from ramet.model.requests import BuildImage, ChangeNetwork, CreateNetwork, ImportImage

router = APIRouter(prefix="/v1")


@router.get("/images", operation_id="list_images", summary="List images", tags=["images"])
async def list_images(host: HostDep) -> list[Image]:
    """All images, by name."""
    return await host.list_images()


@router.post("/images/build", status_code=202, operation_id="build_image", summary="Build an image", tags=["images"])
async def build_image(request: BuildImage, host: HostDep) -> Task:
    """From a recipe, with the machine's own package sources. An image of that name is replaced only with `force`."""
    return await host.build_image(request)


@router.post(
    "/images/import", status_code=202, operation_id="import_image", summary="Import a disk image", tags=["images"]
)
async def import_image(request: ImportImage, host: HostDep) -> Task:
    """A qcow2, raw or vmdk file on the host; it is copied, and may go afterwards. Needs a free name."""
    return await host.import_image(request)


@router.delete(
    "/images/{name}", status_code=204, operation_id="remove_image", summary="Remove an image", tags=["images"]
)
async def remove_image(name: str, host: HostDep) -> None:
    """VMs made from it are not touched: its layers go when nobody uses them any more."""
    await host.remove_image(name)


@router.get("/networks", operation_id="list_networks", summary="List port groups", tags=["networks"])
async def list_networks(host: HostDep) -> list[Network]:
    """All port groups, by name."""
    return await host.list_networks()


@router.post(
    "/networks", status_code=201, operation_id="create_network", summary="Create a port group", tags=["networks"]
)
async def create_network(request: CreateNetwork, host: HostDep) -> Network:
    """Needs a free name, and the privilege to make bridges in a network namespace."""
    return await host.create_network(request)


@router.get("/networks/{name}", operation_id="show_network", summary="Show a port group", tags=["networks"])
async def show_network(name: str, host: HostDep) -> Network:
    """One port group with all of its rules."""
    return await host.show_network(name)


@router.patch("/networks/{name}", operation_id="change_network", summary="Change a port group", tags=["networks"])
async def change_network(name: str, request: ChangeNetwork, host: HostDep) -> Network:
    """At once, also for guests that are plugged in: a connection that is not allowed any more ends.

    Whether a port group is fenced or uplinked, and its network, cannot be changed.
    """
    return await host.change_network(name, request)


@router.delete(
    "/networks/{name}", status_code=204, operation_id="remove_network", summary="Remove a port group", tags=["networks"]
)
async def remove_network(name: str, host: HostDep) -> None:
    """Needs that no VM is plugged into it."""
    await host.remove_network(name)
