"""The surface's world, opened over a host and closed before it.

async with open_world(host) as world: …
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from ramet.vsphere import ids
from ramet.vsphere.access import authorization
from ramet.vsphere.access import opening as access
from ramet.vsphere.access.roles import Roles
from ramet.vsphere.collector import collector
from ramet.vsphere.console import consoles
from ramet.vsphere.core.calls import CURRENT
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.following import Follower
from ramet.vsphere.guest import managers as guest_managers
from ramet.vsphere.guest.first_boot import FirstBoots
from ramet.vsphere.inventory import objects as inventory
from ramet.vsphere.inventory.entity import Labels
from ramet.vsphere.inventory.folders import VmFolder
from ramet.vsphere.inventory.host_facts import HostFacts, HostMeter, read_host
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.machine import checker
from ramet.vsphere.machine.disk_facts import DiskFacts
from ramet.vsphere.machine.guest_facts import GuestFacts
from ramet.vsphere.machine.usage import Usage
from ramet.vsphere.managers import opening as managers
from ramet.vsphere.service import instance
from ramet.vsphere.tasks import manager as task_manager
from ramet.vsphere.tasks.desk import Tasks
from ramet.vsphere.types import load_types
from ramet.vsphere.views import search, views

if TYPE_CHECKING:
    from ramet.host.service import Host

log = structlog.stdlib.get_logger(__name__)

_PAUSE_S = 1.0
ROOMS: tuple[Callable[[World], list[Mo]], ...] = (
    inventory.objects,
    task_manager.objects,
    checker.objects,
    guest_managers.objects,
    instance.objects,
    collector.objects,
    views.objects,
    search.objects,
)
"""Each room's objects that are always there."""


@asynccontextmanager
async def open_world(host: Host) -> AsyncIterator[World]:
    """Everything of the host as managed objects, in step with it until the end of the block."""
    await asyncio.to_thread(load_types)
    world = World(host, host.floor.inventory.store)
    facts = await asyncio.to_thread(read_host)
    world.parts[HostFacts] = facts
    world.parts[HostMeter] = HostMeter(facts)
    world.parts[DiskFacts] = DiskFacts(host)
    world.parts[Usage] = Usage(host, facts.cpu_mhz)
    guests = world.parts[GuestFacts] = GuestFacts(host, lambda vm_id: world.updates.touch(ids.vm_moid(vm_id)))
    places = world.parts[Places] = Places(world)
    tasks = world.parts[Tasks] = Tasks(world)
    world.parts[Labels] = Labels(recent_tasks=tasks.recent)
    follower = Follower(world)
    await places.load()
    for objects in ROOMS:
        for mo in objects(world):
            world.add(mo)
    for record in places.folders():
        world.add(VmFolder(world, record.moid))
    lives = {
        "follow the host": follower.run,
        "guests": guests.run,
        "tasks": tasks.run,
        "first boots": FirstBoots(world).run,
    }
    running: list[asyncio.Task[None]] = []
    try:
        await tasks.load()
        await follower.load()
        await follower.forget_the_gone()
        running += [asyncio.create_task(_go_on(name, run), name=f"vsphere: {name}") for name, run in lives.items()]
        async with access.opened(world), managers.opened(world), consoles.opened(world):
            _label(world)
            yield world
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        tasks.close()


def _label(world: World) -> None:
    """Entities say who may what."""
    labels, roles, manager = world.part(Labels), world.part(Roles), world.find(authorization.MOID)

    def roles_of_caller() -> list[int]:
        call = CURRENT.get()
        role = roles.of_user(call.principal) if call is not None else None
        return [role.role_id] if role is not None else []

    def permissions(moid: str) -> list[Any]:
        if moid == ids.ROOT_FOLDER and isinstance(manager, authorization.AuthorizationManager):
            return manager.permissions()
        return []

    labels.roles, labels.permissions = roles_of_caller, permissions


async def _go_on(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """A bug of ours must not leave clients with a world that stands still."""
    while True:
        try:
            await run()
            return
        except Exception:
            log.exception("a part of the vSphere surface failed and begins anew", part=name)
            await asyncio.sleep(_PAUSE_S)
