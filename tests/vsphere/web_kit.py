"""For tests of what speaks HTTP without SOAP: clients of the raw apps, signed in as somebody."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx

from ramet.model.access import AddUser, Role
from ramet.vsphere.core.world import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ramet.vsphere.wire.exchange import App

PASSWORD = "correct horse"


async def add_user(world: World, name: str, role: Role) -> None:
    await world.host.access.add_user(AddUser.model_validate({"name": name, "role": role, "password": PASSWORD}))


@asynccontextmanager
async def browsing(app: App) -> AsyncIterator[httpx.AsyncClient]:
    """Over https in name only, so that secure cookies are kept."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://vc") as client:
        yield client
