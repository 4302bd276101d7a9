"""This room's parts and objects, for as long as the surface is open.

async with opened(world): ...          # needs the sessions
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from ramet.vsphere.core.world import World
from ramet.vsphere.inventory.entity import Labels
from ramet.vsphere.managers import custom_fields, event_manager, licenses, options, performance
from ramet.vsphere.managers.custom_fields import CustomFields, CustomFieldsManager
from ramet.vsphere.managers.event_manager import EventManager
from ramet.vsphere.managers.licenses import LicenseAssignmentManager, LicenseManager
from ramet.vsphere.managers.options import OptionManager
from ramet.vsphere.managers.performance import PerformanceManager
from ramet.vsphere.managers.sampling import Series

log = structlog.stdlib.get_logger(__name__)

_PAUSE_S = 5.0


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[None]:
    """What runs beside is ended with the block."""
    fields = world.parts[CustomFields] = CustomFields(world)
    series = world.parts[Series] = Series(world)
    await fields.load()
    labels = world.part(Labels)
    labels.custom_values, labels.custom_fields = fields.values_of, fields.defined_for
    labels.set_custom_value = fields.set_by_name
    for mo in (
        OptionManager(world, options.SERVER_MOID, options.SERVER_OPTIONS),
        OptionManager(world, options.HOST_MOID, options.HOST_OPTIONS),
        LicenseManager(world, licenses.MOID),
        LicenseAssignmentManager(world, licenses.ASSIGNMENTS_MOID),
        CustomFieldsManager(world, custom_fields.MOID),
        EventManager(world, event_manager.MOID),
        PerformanceManager(world, performance.MOID),
    ):
        world.add(mo)
    tasks = [
        asyncio.create_task(_go_on("performance", series.run), name="vsphere: performance"),
        asyncio.create_task(_go_on("events", lambda: event_manager.follow(world)), name="vsphere: events"),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _go_on(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """A bug of ours in one part must not take it away for good."""
    while True:
        try:
            await run()
            return
        except Exception:
            log.exception("a part of the vSphere surface failed and begins anew", part=name)
            await asyncio.sleep(_PAUSE_S)
