"""The zygote of a frozen VM: its memory under a QEMU that is linked already, forked instead of the VM's own process.

It saves every clone the linking of QEMU, in time and in memory. It is made when the VM freezes, or for the first clone
that finds none; it ends when the VM thaws or its process ends, and with the daemon, whose successor makes another. A
clone never depends on it: when anything is wrong with it, the VM's own process is forked, as if there were no zygotes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from ramet.clone.holder import clear_holder, fork_from, has_zygotes, held, holder_request
from ramet.errors import RametError
from ramet.hypervisor.fork import ForkReply, ForkRequest
from ramet.hypervisor.rundir import RunDir
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.memory import MemoryKind

_log = logging.getLogger(__name__)


async def begin(live: LiveMachine) -> None:
    """Make a zygote of a VM that is frozen, once for each freeze, unless the setting `zygotes` is off.

    Never raises but for cancellation: a failure is logged, and costs what the zygote would have saved.
    """
    async with live.zygote_lock:
        if live.zygote_tried:
            return
        live.zygote_tried = True
        if not await has_zygotes(live):
            return
        try:
            live.zygote = await live.while_frozen.enter_async_context(_zygote(live))
        except (RametError, OSError) as exc:
            _log.warning("%s has no zygote, its clones take longer: %s", live.name, exc)


async def fork_frozen(live: LiveMachine, request: ForkRequest) -> ForkReply:
    """A fork of a frozen VM: of its zygote, else of its own process. Raises as `fork_from`."""
    await begin(live)
    if live.zygote is not None:
        try:
            return await fork_from(live.rooms, live.zygote, request)
        except RametError as exc:
            _log.warning("the zygote of %s is given up: %s", live.name, exc)
            await live.drop_zygote()
    return await fork_from(live.rooms, live.run_dir, request)


@contextlib.asynccontextmanager
async def _zygote(live: LiveMachine) -> AsyncIterator[RunDir]:
    rooms, run_dir = live.rooms, live.run_dir.zygote
    try:
        with holder_request(live, run_dir, f"ramet-zyg-{live.id[:5]}", zygote=True) as request:
            reply = await fork_from(rooms, live.run_dir, request)
        async with held(live.vm, rooms, reply, MemoryKind.ZYGOTE):
            reach("zygote.forked")
            yield run_dir
    finally:
        await asyncio.to_thread(clear_holder, rooms, run_dir)
