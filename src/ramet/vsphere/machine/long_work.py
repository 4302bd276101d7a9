"""Long work of the host, as the API's Tasks: named after the method that began it, about the VM it was called on.

return await show(mo, call, "PowerOnVM_Task", task)                       # a task that the host has begun
return await run(mo, call, "ReconfigVM_Task", work)                       # work of this surface's own
…, result=async (Task) -> value                # what info.result becomes: awaited before the Task is a success
…, requested="poweredOn"                       # for the InvalidPowerState that it may fail with
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from ramet.errors import DeadlineError, from_dict
from ramet.host.tasks import TaskHandle
from ramet.model.host import Task
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.machine.refusals import refusal
from ramet.vsphere.tasks.desk import Tasks

FOLLOW_S = 5.0
Result = Callable[[Task], Awaitable[Any]]
Work = Callable[[TaskHandle], Awaitable[Any]]


async def until_known(world: World, moid: str, *, gone: bool = False) -> None:
    """The inventory follows the host's store, which is ahead of it by a moment: a task's end must not be seen first."""
    deadline = time.monotonic() + FOLLOW_S
    while (world.get(moid) is None) is not gone and (left_s := deadline - time.monotonic()) > 0:
        await world.updates.wait(world.updates.stamp, left_s)


async def show(
    mo: Mo, call: Call, name: str, task: Task, *, result: Result | None = None, requested: str | None = None
) -> Any:
    fault = partial(refusal, mo, requested=requested)
    return await mo.world.part(Tasks).show(task, name=name, entity=mo, call=call, result=result, fault=fault)


async def run(
    mo: Mo,
    call: Call,
    name: str,
    work: Work,
    *,
    vm_id: str | None = None,
    cancellable: bool = False,
    result: Result | None = None,
) -> Any:
    """`work` may raise any error of the host's, and any fault of the API's."""
    return await mo.world.part(Tasks).run_work(
        call, name, mo, work, vm_id=vm_id, cancellable=cancellable, result=result, fault=partial(refusal, mo)
    )


async def ended(host: Any, task: Task, timeout_s: float = 600.0) -> Task:
    """Wait for a task of the host, and raise what it failed with. Bounded: DeadlineError."""
    final: Task = await host.tasks.wait(task.id, timeout_s)
    if not final.state.is_final:
        raise DeadlineError(f"The task {final.kind} of {final.target!r} takes longer than {timeout_s:g} s.")
    if final.error is not None:
        raise from_dict(final.error)
    return final
