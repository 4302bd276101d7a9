"""Routes of who gets in from outside: users, and the listener for vSphere clients."""

from __future__ import annotations

from fastapi import APIRouter

from ramet.api.edge import HostDep, UidDep
from ramet.model.access import AddUser, Credentials, SetPassword, SetRole, SetVsphere, UserView, VsphereView

router = APIRouter(prefix="/v1", tags=["access"])


@router.get("/users", operation_id="list_users", summary="List users")
async def list_users(host: HostDep) -> list[UserView]:
    """Those who may log in from outside, by name."""
    return host.access.list_users()


@router.post("/users", status_code=201, operation_id="add_user", summary="Add a user")
async def add_user(request: AddUser, host: HostDep, uid: UidDep) -> Credentials:
    """Without a password a random one is made, which this answer tells and nothing else ever does."""
    return await host.access.add_user(request, uid)


@router.delete("/users/{name}", status_code=204, operation_id="remove_user", summary="Remove a user")
async def remove_user(name: str, host: HostDep, uid: UidDep) -> None:
    """Their sessions end. Refused for the last administrator while there are other users."""
    await host.access.remove_user(name, uid)


@router.put("/users/{name}/password", operation_id="set_password", summary="Set a user's password")
async def set_password(name: str, request: SetPassword, host: HostDep, uid: UidDep) -> Credentials:
    """Their sessions end, and so does a lock. Without a password a random one is made and told."""
    given = request.password.get_secret_value() if request.password else None
    return await host.access.set_password(name, given, uid)


@router.put("/users/{name}/role", operation_id="set_role", summary="Change what a user may do")
async def set_role(name: str, request: SetRole, host: HostDep, uid: UidDep) -> UserView:
    """Their sessions end. Refused for the last administrator."""
    return await host.access.set_role(name, request.role, uid)


@router.post("/users/{name}/unlock", operation_id="unlock_user", summary="Let a locked user in again")
async def unlock_user(name: str, host: HostDep, uid: UidDep) -> UserView:
    """Too many wrong passwords lock a user for a while (settings `lockout_failures`, `lockout_s`)."""
    return await host.access.unlock_user(name, uid)


@router.get("/vsphere", operation_id="vsphere", summary="The listener for vSphere clients")
async def vsphere(host: HostDep) -> VsphereView:
    """Where it is, and the certificate by which clients know it."""
    return host.access.vsphere()


@router.put("/vsphere", operation_id="set_vsphere", summary="Serve vSphere clients, or no longer")
async def set_vsphere(request: SetVsphere, host: HostDep, uid: UidDep) -> VsphereView:
    """From now on and after a restart. The first time an administrator is made, whose password this answer tells."""
    return await host.access.set_vsphere(request, uid)
