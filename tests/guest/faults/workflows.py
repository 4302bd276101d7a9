"""What users do, as far as faults are injected into it: each workflow, and the steps that it passes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ramet.errors import from_dict
from ramet.machine import steps
from ramet.model.host import Task
from ramet.model.pool import PoolState, SetPool
from ramet.model.requests import (
    AddDisk,
    CloneVm,
    CreateNetwork,
    CreateVm,
    DiskRequest,
    ImportImage,
    NicChange,
    NicRequest,
    StopVm,
)
from ramet.model.trying import TryCommand
from tests.guest.faults.stage import SOURCE, Stage

Run = Callable[[Stage], Awaitable[object]]


@dataclass(frozen=True)
class Workflow:
    """What a user does. `before` is done without a fault; `begin` starts it; the task it returns is waited for."""

    steps: tuple[str, ...]
    run: Run
    before: Run | None = None
    forks_from: tuple[str, ...] = ()
    """Steps with a fork still ahead."""
    child_from: str | None = None
    """The first step at which a QEMU of the workflow's own exists."""
    cancellable: bool = False

    def has_child(self, step: str) -> bool:
        """Whether a QEMU of its own exists at a step."""
        return self.child_from is not None and self.steps.index(step) >= self.steps.index(self.child_from)


def bare(*names: str, **more: object) -> CloneVm:
    return CloneVm(names=names, **{"bare": True, **more})


async def _clone(stage: Stage) -> None:
    await stage.done(await stage.host.clone_vm(SOURCE, bare("kid", ttl_s=3600.0)))


async def _clone_many(stage: Stage) -> None:
    result = await stage.done(await stage.host.clone_vm(SOURCE, bare("kid", "kid2")))
    for one in result if isinstance(result, list) else []:
        if not one["ok"]:
            raise from_dict(one["error"])


async def _identity(stage: Stage) -> None:
    request = CloneVm(names=("kid",), identity_timeout_s=20, wait_network_s=0)
    result = await stage.done(await stage.host.clone_vm(SOURCE, request))
    assert isinstance(result, list)
    if result[0]["problem"]:
        raise from_dict({"code": "guest", "message": result[0]["problem"]})


async def _fenced(stage: Stage) -> None:
    request = CloneVm(names=("kid",), nics=(NicChange(id="net0", network="copies"),), wait_network_s=0)
    result = await stage.done(await stage.host.clone_vm(SOURCE, request))
    assert isinstance(result, list)
    if result[0]["problem"]:
        raise from_dict({"code": "guest", "message": result[0]["problem"]})


async def _freeze(stage: Stage) -> None:
    await stage.done(await stage.host.freeze_vm(SOURCE))


async def _thaw(stage: Stage) -> None:
    await stage.done(await stage.host.thaw_vm(SOURCE))


async def _set_pool(stage: Stage) -> None:
    await stage.host.set_pool(SOURCE, SetPool(size=1))


def _pool_is_full(stage: Stage) -> bool:
    return [view.state for view in stage.host._pools.views()] == [PoolState.FULL]


async def _grow_pool(stage: Stage) -> None:
    before = {task.id for task in stage.host.tasks.list()}

    def failures() -> list[Task]:
        refills = [task for task in stage.host.tasks.list() if task.kind == "pool.refill" and task.id not in before]
        return [task for task in refills if task.error is not None]

    await _set_pool(stage)
    await stage.until(
        lambda: _pool_is_full(stage) or not stage.source.vm.frozen or bool(failures()), "the pool is full, or says why"
    )
    for task in failures():
        raise from_dict(task.error or {})


async def _full_pool(stage: Stage) -> None:
    await _freeze(stage)
    await _set_pool(stage)
    await stage.until(lambda: _pool_is_full(stage), "the pool is full")


async def _drop_pool(stage: Stage) -> None:
    await stage.host.remove_pool(SOURCE)


async def _try(stage: Stage) -> None:
    command = TryCommand(argv=("/bin/sh", "-c", "echo hello > /tmp/hello"), timeout_s=60)
    await stage.done(await stage.host.try_command(SOURCE, command))


def _new() -> CreateVm:
    return CreateVm(name="new", image="micro", memory_mib=96, nics=(NicRequest(network=None),),
                    disks=(DiskRequest(size_mib=16),))  # fmt: skip


async def _create(stage: Stage) -> None:
    await stage.done(await stage.host.create_vm(_new()))


async def _start(stage: Stage) -> None:
    await stage.done(await stage.host.start_vm("new"))


async def _stop(stage: Stage) -> None:
    await stage.done(await stage.host.stop_vm("kid", StopVm(timeout_s=20)))


async def _cut(stage: Stage) -> None:
    await stage.done(await stage.host.stop_vm("kid", StopVm(hard=True)))


async def _suspend(stage: Stage) -> None:
    await stage.done(await stage.host.suspend_vm("kid"))


async def _suspended(stage: Stage) -> None:
    await _clone(stage)
    await _suspend(stage)


async def _resume(stage: Stage) -> None:
    await stage.done(await stage.host.resume_vm("kid"))


async def _remove(stage: Stage) -> None:
    await stage.done(await stage.host.remove_vm("kid", force=True))


async def _flatten(stage: Stage) -> None:
    """Clone until the source's chain is flattened; by itself that happens behind a clone's back."""
    before = {task.id for task in stage.host.tasks.list()}
    for _ in range(stage.host.settings.chain_bound + 2):
        await stage.sh(SOURCE, "dd if=/dev/urandom of=/d/junk bs=64k count=4 2>/dev/null; sync")
        await stage.done(await stage.host.clone_vm(SOURCE, bare("kid")))
        await stage.done(await stage.host.remove_vm("kid", force=True))
        await stage.settle()
        for task in stage.host.tasks.list():
            if task.id not in before and task.kind == "vm.shorten":
                await stage.done(task)
                return


async def _import(stage: Stage) -> None:
    path = stage.state_dir / "disk.raw"
    path.write_bytes(os.urandom(1 << 20))
    try:
        await stage.done(await stage.host.import_image(ImportImage(path=str(path), name="imported")))
    finally:
        path.unlink()


async def _network(stage: Stage) -> None:
    await stage.host.create_network(CreateNetwork(name="extra", cidr="10.77.23.0/24", dhcp=True))
    await stage.host.remove_network("extra")


async def _add_disk(stage: Stage) -> None:
    await stage.host.add_disk("kid", AddDisk(size_mib=16))


async def _add_nic(stage: Stage) -> None:
    await stage.host.add_nic("kid", NicRequest(network=None))


_BEFORE_FORK = ("clone.journalled", "clone.prepared", "clone.stopped", "pool.journalled", "pool.prepared")

WORKFLOWS: dict[str, Workflow] = {
    "clone": Workflow(steps.CLONE_STEPS, _clone, forks_from=_BEFORE_FORK, child_from="clone.forked", cancellable=True),
    "clone two": Workflow(
        steps.CLONE_STEPS, _clone_many, forks_from=_BEFORE_FORK, child_from="clone.forked", cancellable=True
    ),
    "clone into a fence": Workflow(
        (*steps.CLONE_STEPS, *steps.IDENTITY_STEPS), _fenced, child_from="clone.forked", cancellable=True
    ),
    "identity": Workflow(steps.IDENTITY_STEPS, _identity, child_from="identity.begun", cancellable=True),
    "freeze": Workflow((*steps.FREEZE_STEPS, "zygote.forked"), _freeze, child_from="zygote.forked"),
    "clone the frozen": Workflow(
        steps.FROZEN_CLONE_STEPS, _clone, _freeze, _BEFORE_FORK, "clone.forked", cancellable=True
    ),
    "thaw": Workflow(steps.THAW_STEPS, _thaw, _freeze),
    "fill a pool": Workflow(steps.POOL_GROW_STEPS, _grow_pool, _freeze, _BEFORE_FORK, "pool.forked"),
    "take from a pool": Workflow(steps.POOL_TAKE_STEPS, _clone, _full_pool, child_from="pool.taken"),
    "give a pool up": Workflow(steps.POOL_DROP_STEPS, _drop_pool, _full_pool, child_from="pool.dropping"),
    "try": Workflow(steps.TRY_STEPS, _try, child_from="try.cloned", cancellable=True),
    "create": Workflow(steps.CREATE_STEPS, _create),
    "start": Workflow(steps.START_STEPS, _start, _create, child_from="start.launched"),
    "stop": Workflow(steps.STOP_STEPS[:1], _stop, _clone, child_from="stop.recorded"),
    "cut the power": Workflow(steps.STOP_STEPS[1:], _cut, _clone, child_from="stop.signalled"),
    "suspend": Workflow(steps.SUSPEND_STEPS, _suspend, _clone, child_from="suspend.journalled"),
    "resume": Workflow(steps.START_STEPS, _resume, _suspended, child_from="start.launched"),
    "remove": Workflow(steps.REMOVE_STEPS, _remove, _clone),
    "flatten": Workflow(steps.FLATTEN_STEPS, _flatten),
    "import": Workflow(steps.IMPORT_STEPS, _import, cancellable=True),
    "port group": Workflow(steps.NETWORK_STEPS, _network),
    "plug a disk": Workflow(steps.DISK_STEPS, _add_disk, _clone, child_from="disk.made"),
    "plug a NIC": Workflow(steps.NIC_STEPS, _add_nic, _clone, child_from="nic.recorded"),
}
