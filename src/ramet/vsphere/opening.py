"""The surface's world, opened over a host and closed before it.

async with open_world(host) as world: …
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ramet.vsphere import ids
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.following import Follower
from ramet.vsphere.guest import managers as guest_managers
from ramet.vsphere.inventory import objects as inventory
from ramet.vsphere.inventory.entity import Labels
from ramet.vsphere.inventory.folders import VmFolder
from ramet.vsphere.inventory.host_facts import HostFacts, HostMeter, read_host
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.machine import checker
from ramet.vsphere.machine.disk_facts import DiskFacts
from ramet.vsphere.machine.guest_facts import GuestFacts
from ramet.vsphere.machine.usage import Usage
from ramet.vsphere.tasks import manager as task_manager
from ramet.vsphere.tasks.desk import Tasks

if TYPE_CHECKING:
    from ramet.host.service import Host

ROOMS: tuple[Callable[[World], list[Mo]], ...] = (
    inventory.objects,
    task_manager.objects,
    checker.objects,
    guest_managers.objects,
)
"""Each room's objects that are always there."""


@asynccontextmanager
async def open_world(host: Host) -> AsyncIterator[World]:
    """Everything of the host as managed objects, in step with it until the end of the block."""
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
    await tasks.load()
    await follower.load()
    running = [
        asyncio.create_task(follower.run(), name="vsphere: follow the host"),
        asyncio.create_task(guests.run(), name="vsphere: guests"),
        asyncio.create_task(tasks.run(), name="vsphere: tasks"),
    ]
    try:
        yield world
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
