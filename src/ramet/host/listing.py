"""What VMs look like from outside, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ramet.errors import NotFoundError
from ramet.machine.live import LiveMachine
from ramet.machine.view import vm_view
from ramet.model.views import VmView

AT_ONCE = 100
"""In one turn of a thread: a turn for each costs more than what is done in it."""

Addresses = Mapping[str, tuple[str, ...]]
Known = tuple[LiveMachine, Addresses, str | None]


async def views_of(
    machines: Sequence[LiveMachine],
    users: Mapping[str, int],
    addresses: Callable[[LiveMachine], Awaitable[Addresses]],
    busy_with: Callable[[str], str | None],
) -> list[VmView]:
    """In the order of `machines`, without those that go meanwhile. `users`: of each layer, how many there are."""
    views: list[VmView] = []
    for start in range(0, len(machines), AT_ONCE):
        known = [(live, await addresses(live), busy_with(live.id)) for live in machines[start : start + AT_ONCE]]
        views += await asyncio.to_thread(_look, known, users)
    return views


def _look(known: Sequence[Known], users: Mapping[str, int]) -> list[VmView]:
    views = []
    for live, at, busy in known:
        try:
            views.append(vm_view(live, layer_users=users, addresses=at, busy_with=busy))
        except NotFoundError:  # a layer of its disks
            if not live.removed:
                raise
    return views
