"""The host's refusals, as faults that name what the API wants named: the VM that has the name, the running task.

with refusing(mo, requested="poweredOn"): await host.start_vm(…)
refusal(mo, error) -> fault
power_state(vm.state) -> "poweredOn"
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ramet import errors
from ramet.model.machine import VmState
from ramet.vsphere import ids
from ramet.vsphere.core.faults import fault_of, words_of
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.types import vim

_OFF = (VmState.OFF, VmState.STARTING, VmState.READY)


def power_state(state: VmState) -> str:
    """As the API counts: a VM that is frozen, or held by QEMU, is on."""
    return "suspended" if state is VmState.SUSPENDED else "poweredOff" if state in _OFF else "poweredOn"


@contextlib.contextmanager
def refusing(mo: Mo, requested: str | None = None) -> Iterator[None]:
    """`requested`: the power state that the operation leads to, or needs, for InvalidPowerState."""
    try:
        yield
    except (errors.RametError, OSError) as exc:
        fault = refusal(mo, exc, requested)
        if fault is None:
            raise
        raise fault from exc


def refusal(mo: Mo, exc: BaseException, requested: str | None = None) -> Any:
    """None for what is a bug of ours."""
    match exc:
        case errors.ConflictError() if exc.fields.get("name") is not None:
            return duplicate_name(mo.world, str(exc.fields["name"]), words_of(exc))
        case errors.BusyError():
            return vim.fault.TaskInProgress(task=_running_task(mo), msg=words_of(exc))
        case errors.StateError():
            return _wrong_state(mo, exc, requested)
    return fault_of(exc)


def duplicate_name(world: World, name: str, said: str) -> Any:
    """With the VM that has it. A name may be taken by one that is still being made: its id is not known yet."""
    with contextlib.suppress(errors.NotFoundError):
        taken = world.host.floor.inventory.find_vm(name)
        return vim.fault.DuplicateName(name=name, object=vim.VirtualMachine(ids.vm_moid(taken.id)), msg=said)
    return vim.fault.DuplicateName(name=name, object=vim.VirtualMachine("unset"), msg=said)


def _wrong_state(mo: Mo, exc: errors.StateError, requested: str | None) -> Any:
    vm_id = ids.vm_id(mo.moid)
    live = mo.world.host.floor.machines.get(vm_id) if vm_id else None
    if live is None or requested is None:
        return vim.fault.InvalidState(msg=words_of(exc))
    existing = power_state(live.vm.state)
    return vim.fault.InvalidPowerState(requestedState=requested, existingState=existing, msg=words_of(exc))


def _running_task(mo: Mo) -> Any:
    vm_id = ids.vm_id(mo.moid)
    for task in mo.world.host.tasks.list():
        if task.vm_id == vm_id and not task.state.is_final:
            return vim.Task(ids.task_moid(task.id))
    return vim.Task("unset")
