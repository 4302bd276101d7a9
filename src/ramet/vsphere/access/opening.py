"""This room's parts and objects, for as long as the surface is open.

async with opened(world): ...          # world.part(Sessions), world.part(Roles); all calls are attended to
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ramet.vsphere.access import authorization, directory, session_manager
from ramet.vsphere.access.attending import Attendant
from ramet.vsphere.access.authorization import AuthorizationManager
from ramet.vsphere.access.directory import UserDirectory
from ramet.vsphere.access.roles import Roles
from ramet.vsphere.access.session_manager import SessionManager
from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.world import World


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[None]:
    """At the end all sessions are over."""
    access, settings = world.host.access, world.host.settings
    roles = Roles(access.users, world.store)
    await roles.load()
    sessions = Sessions(
        access.users,
        access.audit,
        roles.may,
        idle_s=settings.session_idle_s,
        most=settings.sessions_max,
        most_each=settings.sessions_per_user_max,
        on_end=world.updates.wake,
    )
    world.parts[Roles], world.parts[Sessions] = roles, sessions
    world.attendant = Attendant(world, sessions, access.audit)
    for mo in (
        SessionManager(world, session_manager.MOID),
        AuthorizationManager(world, authorization.MOID),
        UserDirectory(world, directory.MOID),
    ):
        world.add(mo)
    stop = access.users.watch(sessions.end_of)
    try:
        yield
    finally:
        stop()
        sessions.end_all()
