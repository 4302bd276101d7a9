"""VMs that start by themselves when the daemon does."""

from __future__ import annotations

import asyncio

from ramet.errors import RametError
from ramet.host.floor import Floor
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.host.vms import VmDesk
from ramet.model.machine import VmState


async def autostart(floor: Floor, tasks: TaskManager, vms: VmDesk, delay_s: float) -> None:
    """One after the other, as a task of their own: guests that boot all at once hold each other up."""
    wanted = [m.id for m in floor.shown() if m.vm.machine.autostart and m.vm.state is VmState.OFF]
    if not wanted:
        return

    async def work(handle: TaskHandle) -> None:
        for vm_id in wanted:
            try:
                await vms.start(vm_id)
            except RametError as exc:
                floor.rooms.book.emit("host.warning", f"A VM did not start by itself: {exc}")
            await asyncio.sleep(delay_s)

    await tasks.start("host.autostart", f"{len(wanted)} VMs", work, cancellable=True)
