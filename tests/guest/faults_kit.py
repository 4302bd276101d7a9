"""Faults at the steps of workflows: what can be injected, where, and what must be true afterwards, whatever it was.

A case is a workflow, one of its steps (``ramet.machine.steps``), and a fault. It runs on a host in this process with a
guest that was booted once. `Stage.check` is the one judge of all cases: the source runs and is whole, nothing is left
that belongs to nobody, the inventory says what QEMU says, and whoever asked was told what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ramet.errors import NotFoundError, QemuError, RametError, from_dict, from_os_error
from ramet.host.service import Host
from ramet.hypervisor.qmp import QmpSession
from ramet.machine import steps
from ramet.machine.live import LiveMachine
from ramet.model.host import Task, TaskState
from ramet.model.machine import VmState
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
from ramet.network.taps import tap_name
from tests.guest.conftest import Guests

SOURCE = "source"
PATIENCE_S = 90.0
_IN_A_MOMENT_S = 30.0
MEMCHECK_MIB = 24

_PREPARE = """
[ -d /d ] || mkdir /d
mount /dev/vda /d 2>/dev/null || { mke2fs -q /dev/vda >/dev/null 2>&1; mount /dev/vda /d; echo 0 > /d/n; sync; }
"""
_WATCH = f"""
chmod 755 /d/memcheck
(/d/memcheck {MEMCHECK_MIB} > /run/memcheck 2>&1 &)
until grep -q tick /run/memcheck; do sleep 0.1; done
"""
_WHOLE = "! grep -q BAD /run/memcheck && tail -n 1 /run/memcheck && echo 3 > /proc/sys/vm/drop_caches && cat /d/n"


@dataclass
class Stage:
    """A host, and a source on it that any number of cases use one after the other."""

    host: Host
    checker: Path
    state_dir: Path
    guests: Guests = field(init=False)
    outcomes: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Workflow, step, fault, what came of it."""

    def __post_init__(self) -> None:
        self.guests = Guests(self.host)

    # -- the inside of the host, which the judge may look at -----------------------------------------------------------

    @property
    def machines(self) -> dict[str, LiveMachine]:
        return self.host.floor.machines

    def live(self, name: str) -> LiveMachine:
        return self.host.floor.find(name)

    @property
    def source(self) -> LiveMachine:
        return self.live(SOURCE)

    # -- before a case -------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Boot the source, on port groups of its own."""
        for request in (
            CreateNetwork(name="lab", cidr="10.77.21.0/24", dhcp=True),
            CreateNetwork(name="copies", cidr="10.77.22.0/24", dhcp=True, fenced=True),
        ):
            if self.host.floor.rooms.networks.privileged:
                await self.host.create_network(request)
        nic = NicRequest(network="lab" if self.host.floor.rooms.networks.privileged else None)
        disks = (DiskRequest(size_mib=64),)
        vm = CreateVm(name=SOURCE, image="micro", memory_mib=160, nics=(nic,), disks=disks)
        await self.done(await self.host.create_vm(vm))
        await self.start_source()

    async def start_source(self) -> None:
        await self.done(await self.host.start_vm(SOURCE))
        await self.host.wait_agent(SOURCE, 120)
        await self.sh(SOURCE, _PREPARE)
        if "memcheck" not in await self.sh(SOURCE, "ls /d"):
            await self.guests.push(SOURCE, self.checker, "/d/memcheck")
        await self.sh(SOURCE, _WATCH)

    async def sh(self, name: str, script: str) -> str:
        return await self.guests.sh(name, script)

    async def done(self, task: Task) -> object:
        """The result of a task; its error is raised as its client would see it."""
        ended = await self.host.tasks.wait(task.id, PATIENCE_S)
        assert ended.state.is_final, f"{ended.kind} does not end"
        if ended.state is not TaskState.SUCCESS:
            raise from_dict(ended.error or {"message": "cancelled", "code": "cancelled"})
        return ended.result

    async def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, f"it does not come true: {what}"
            await asyncio.sleep(0.05)

    async def settle(self) -> None:
        """Until nothing is under way any more."""
        await self.until(lambda: all(task.state.is_final for task in self.host.tasks.list()), "all tasks have ended")

    # -- after a case --------------------------------------------------------------------------------------------------

    async def check(self, source_killed: bool = False) -> None:
        """See the module. A guest that was paused by a full disk goes on when it is told to."""
        await self.settle()
        problems: list[str] = []
        deadline = time.monotonic() + _IN_A_MOMENT_S  # a process that was killed is recorded as soon as it is reaped
        while time.monotonic() < deadline:
            for live in list(self.machines.values()):
                if live.vm.state is VmState.PAUSED and live.vm.pause_reason == "disk full":
                    await self.done(await self.host.resume_vm(live.id))
            problems = [*await self._untrue(), *await self._orphans()]
            if not problems:
                break
            await asyncio.sleep(0.2)
        assert not problems, problems
        for task in self.host.tasks.list():
            assert task.error is None or task.error["code"] != "internal", task
        if source_killed:
            assert self.source.vm.state is VmState.OFF
        elif self.source.vm.state is VmState.RUNNING:
            await self.is_whole()
        else:
            assert self.source.vm.state is VmState.FROZEN, self.source.vm.state
        for live in list(self.machines.values()):
            if live.vm.state is VmState.RUNNING and live.name != "new":
                assert await self.sh(live.name, "cat /d/n >/dev/null && echo here") == "here"

    async def is_whole(self) -> None:
        """Its memory is right, its disk readable and writable, and what it wrote last is there."""
        number = int((await self.sh(SOURCE, _WHOLE)).splitlines()[-1])
        await self.sh(SOURCE, f"echo {number + 1} > /d/n; sync")
        assert (await self.sh(SOURCE, "cat /d/n")) == str(number + 1)

    async def _untrue(self) -> list[str]:
        """Where the inventory says something else than QEMU, or an operation is not settled."""
        problems = [f"journal: {entry.kind}" for entry in self.host._journal.pending()]
        inventory = {vm.id: vm for vm in self.host.floor.inventory.vms()}
        if inventory.keys() != self.machines.keys():
            problems.append(f"inventory {sorted(inventory)}, machines {sorted(self.machines)}")
        for live in list(self.machines.values()):
            if inventory.get(live.id) != live.vm:
                problems.append(f"{live.name}: the record in memory is not the one in the inventory")
            problems += await self._untrue_vm(live)
        return problems

    async def _untrue_vm(self, live: LiveMachine) -> list[str]:
        state = live.vm.state
        if state in (VmState.OFF, VmState.SUSPENDED):
            return [f"{live.name} is {state.value} and has a process"] if live.process or live.vm.process else []
        if live.process is None or not live.process.is_running:
            return [f"{live.name} is {state.value} and has no process"]
        try:
            status = (await live.qmp.status()).status
        except RametError as exc:
            return [f"{live.name} does not answer: {exc}"]
        wanted = {
            VmState.RUNNING: {"running"},
            VmState.FROZEN: {"postmigrate"},
            VmState.READY: {"paused", "inmigrate", "prelaunch"},
        }.get(state, set())
        return [] if status in wanted else [f"{live.name} is {state.value}, and QEMU says {status}"]

    async def _orphans(self) -> list[str]:
        """What belongs to nobody, and what somebody lacks: processes, taps, sockets, files, layers, groups."""
        floor, rooms = self.host.floor, self.host.floor.rooms
        on = {live.id for live in self.machines.values() if live.vm.is_on}
        pids = {live.process.pid for live in self.machines.values() if live.process}
        zygotes = {pid for pid in _with_library(rooms.paths.native) if _name(pid).startswith("ramet-zyg")}
        if len(zygotes) <= sum(1 for live in self.machines.values() if live.vm.frozen):
            pids |= zygotes
        problems = _differ("processes", _with_library(rooms.paths.native), pids)
        found = {path.name for path in rooms.paths.run.iterdir() if path.is_dir()} - {"native"}
        problems += _differ("run directories", found, on)
        vms = {path.name for path in (self.state_dir / "vms").iterdir()}
        problems += [f"files of no VM: {sorted(vms - self.machines.keys())}"] if vms - self.machines.keys() else []
        tops = {top for roots in floor.roots_by_owner().values() for top in roots}
        problems += (
            [f"layers that are gone: {gone}"] if (gone := [t for t in tops if not rooms.layers.exists(t)]) else []
        )
        wanted = {layer.id for top in tops if rooms.layers.exists(top) for layer in rooms.layers.chain(top)}
        stored = {path.stem for path in rooms.paths.layers.glob("*.qcow2")}
        problems += _differ("layers", stored, wanted)
        moments = {path.stem for path in (self.state_dir / "moments").iterdir()}
        problems += _differ("moments", moments, {m for live in self.machines.values() if (m := live.vm.moment_id)})
        problems += _differ("control groups", self._groups(), on)
        if rooms.networks.privileged:
            nics = [(live.id, nic) for live in self.machines.values() if live.vm.is_on for nic in live.vm.machine.nics]
            taps = {tap_name(vm_id, nic.index) for vm_id, nic in nics if not nic.is_user_mode}
            away = {tap_name(vm_id, nic.index) for vm_id, nic in nics if rooms.networks.is_fenced(nic)}
            problems += _differ("taps", set(await rooms.networks.list_taps()) | away, taps)
            namespaces = {p.name for p in Path("/run/netns").glob(f"{rooms.networks.namespace.name}-*")}
            # A fence stays with its VM when that is off, and goes when it is removed.
            cards = [nic for live in self.machines.values() for nic in live.vm.machine.nics]
            fenced = sum(1 for nic in cards if nic.connected and rooms.networks.is_fenced(nic))
            problems += [f"{len(namespaces)} fences for {fenced} NICs"] if len(namespaces) > fenced else []
        return problems

    def _groups(self) -> set[str]:
        """The VMs that have a control group, among the lineages of this stage."""
        lineages = {live.vm.lineage_id or live.id for live in self.machines.values()}
        bases = [base for base, _ in self.host.floor.rooms.cgroups.bases.values()]
        found = {path.name.removeprefix("vm-") for base in bases for one in lineages
                 for path in (base / f"lineage-{one}").glob("vm-*")}  # fmt: skip
        return found if bases else {live.id for live in self.machines.values() if live.vm.is_on}

    async def reset(self) -> None:
        """Back to a source that runs, alone."""
        for spec in self.host.floor.inventory.pools.all():
            await self.host.remove_pool(spec.vm_id)
        for live in list(self.host.floor.shown()):
            if live.name != SOURCE:
                with contextlib.suppress(NotFoundError):
                    await self.done(await self.host.remove_vm(live.id, force=True))
        for image in await self.host.list_images():
            if image.name != "micro":
                await self.host.remove_image(image.name)
        for network in await self.host.list_networks():
            if network.name in ("extra", "ramet-try"):
                await self.host.remove_network(network.name)
        if self.host.floor.rooms.networks.privileged and "copies" not in self.host.floor.rooms.networks.groups:
            await self.host.create_network(CreateNetwork(name="copies", cidr="10.77.22.0/24", dhcp=True, fenced=True))
        if self.source.vm.state is VmState.FROZEN:
            await self.done(await self.host.thaw_vm(SOURCE))
        if self.source.vm.state is VmState.OFF:
            await self.start_source()
        await self.settle()


def _differ(what: str, found: set[str] | set[int], wanted: set[str] | set[int]) -> list[str]:
    if found == wanted:
        return []
    return [f"{what}: too many {sorted(found - wanted)}, missing {sorted(wanted - found)}"]


def _with_library(native: Path) -> set[int]:
    """Every process that forks, or was forked: the library is mapped in it."""
    found = set()
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{native}/" in (directory / "maps").read_text():
                    found.add(int(directory.name))
    return found


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


# -- workflows ---------------------------------------------------------------------------------------------------------

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


def _bare(*names: str, **more: object) -> CloneVm:
    return CloneVm(names=names, **{"bare": True, **more})


async def _clone(stage: Stage) -> None:
    await stage.done(await stage.host.clone_vm(SOURCE, _bare("kid", ttl_s=3600.0)))


async def _clone_many(stage: Stage) -> None:
    result = await stage.done(await stage.host.clone_vm(SOURCE, _bare("kid", "kid2")))
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
        await stage.done(await stage.host.clone_vm(SOURCE, _bare("kid")))
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


# -- faults ------------------------------------------------------------------------------------------------------------


@dataclass
class Blow:
    """A fault on its way: it strikes the first time that its step is reached."""

    stage: Stage
    step: str
    kind: str
    patch: pytest.MonkeyPatch
    struck: bool = False
    others: list[asyncio.Task[object]] = field(default_factory=list)
    """Operations of others, which the fault consists of."""
    undo: list[Callable[[], object]] = field(default_factory=list)

    def __call__(self, step: str) -> None:
        if step == self.step and not self.struck:
            self.struck = True
            FAULTS[self.kind](self)

    def meanwhile(self, work: Awaitable[object]) -> None:
        self.others.append(asyncio.ensure_future(work))


def _raise(number: int) -> Callable[[Blow], None]:
    def strike(blow: Blow) -> None:
        raise OSError(number, os.strerror(number), f"injected at {blow.step}")

    return strike


def _kill_source(blow: Blow) -> None:
    os.kill(blow.stage.source.require_process().pid, signal.SIGKILL)


def _kill_child(blow: Blow) -> None:
    rooms, source = blow.stage.host.floor.rooms, blow.stage.source.process
    for pid in _with_library(rooms.paths.native) - ({source.pid} if source else set()):
        os.kill(pid, signal.SIGKILL)


def _refuse_fork(blow: Blow) -> None:
    """Who holds the source's memory forks no more. (A limit of processes does more: QEMU aborts without threads.)"""
    sockets = [blow.stage.source.run_dir.fork, *blow.stage.host.floor.rooms.paths.run.glob("m-*/fork")]
    for path in filter(Path.exists, sockets):
        path.rename(path.with_name("fork-away"))
        blow.undo.append(lambda path=path: _rename_back(path))  # type: ignore[misc]


def _rename_back(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # the VM is off
        path.with_name("fork-away").rename(path)


def _refuse_qmp(blow: Blow) -> None:
    """QEMU refuses the next command, whichever that is."""
    execute = QmpSession.execute
    refused: list[str] = []

    async def refuse(self: QmpSession, command: str, *args: object, **more: object) -> object:
        if not refused and not command.startswith(("query-", "getfd")):  # one that comes with a descriptor is not alone
            refused.append(command)
            raise QemuError(f"QEMU refused {command}: injected.", command=command, qemu="injected")
        return await execute(self, command, *args, **more)  # type: ignore[arg-type]

    blow.patch.setattr(QmpSession, "execute", refuse)


def _fill_disk(blow: Blow) -> None:
    """The state folder's file system has no byte more, until the case is over."""
    filler = blow.stage.state_dir / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        for size in (1 << 26, 1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), file.tell(), size)
                    file.seek(size, os.SEEK_CUR)
    blow.undo.append(filler.unlink)


def _jump_clock(seconds: float) -> Callable[[Blow], None]:
    def strike(blow: Blow) -> None:
        now = time.time
        blow.patch.setattr(time, "time", lambda: now() + seconds)

    return strike


def _clone_too(blow: Blow) -> None:
    blow.meanwhile(_finish(blow.stage, blow.stage.host.clone_vm(SOURCE, _bare("other"))))


def _stop_source(blow: Blow) -> None:
    blow.meanwhile(_finish(blow.stage, blow.stage.host.stop_vm(SOURCE, StopVm(hard=True))))


def _remove_child(blow: Blow) -> None:
    blow.meanwhile(_finish(blow.stage, blow.stage.host.remove_vm("kid", force=True)))


def _remove_network(blow: Blow) -> None:
    async def remove() -> None:
        await blow.stage.host.remove_network("copies")

    blow.meanwhile(remove())


def _cancel(blow: Blow) -> None:
    async def cancel() -> None:
        for task in blow.stage.host.tasks.list():
            if not task.state.is_final and task.cancellable:
                await blow.stage.host.tasks.cancel(task.id)

    blow.meanwhile(cancel())


async def _finish(stage: Stage, starting: Awaitable[Task]) -> None:
    await stage.done(await starting)


FAULTS: dict[str, Callable[[Blow], None]] = {
    "no space": _raise(errno.ENOSPC),
    "no process": _raise(errno.EAGAIN),
    "disk full": _fill_disk,
    "fork refused": _refuse_fork,
    "command refused": _refuse_qmp,
    "source killed": _kill_source,
    "VM killed": _kill_child,
    "cancelled": _cancel,
    "cloned meanwhile": _clone_too,
    "source stopped meanwhile": _stop_source,
    "removed meanwhile": _remove_child,
    "port group removed": _remove_network,
    "clock ahead": _jump_clock(86400.0 * 30),
    "clock back": _jump_clock(-86400.0 * 30),
}


def faults_of(name: str, step: str) -> Iterator[str]:
    """Those that mean something at this step of this workflow, and that no other workflow shows as well."""
    flow = WORKFLOWS[name]
    room = step.partition(".")[0]
    if name == "clone into a fence":
        yield from ("no space", "command refused", "VM killed", "port group removed")[
            0 if flow.has_child(step) else 3 :
        ]
        return
    yield from ("no space", "disk full", "command refused")
    if step in flow.forks_from:
        yield "fork refused"
    if flow.has_child(step):
        yield "VM killed"
    if flow.cancellable:
        yield "cancelled"
    if name == "clone two":
        return
    if room in ("clone", "zygote", "pool", "start", "import", "flatten"):
        yield "no process"
    if step == flow.steps[0]:
        yield from ("clock ahead", "clock back")
    if room in ("clone", "freeze", "thaw", "identity", "pool", "flatten", "try"):
        yield "source killed"
        if step in (flow.steps[0], flow.steps[-1]):
            yield from ("source stopped meanwhile", "cloned meanwhile")
    if flow.has_child(step):
        yield "removed meanwhile"


def cases() -> Iterator[tuple[str, str, str]]:
    """The whole table: workflow, step, fault."""
    for name, flow in WORKFLOWS.items():
        for step in flow.steps:
            for fault in faults_of(name, step):
                yield name, step, fault


# -- a case ------------------------------------------------------------------------------------------------------------


async def perform(stage: Stage, name: str, step: str, fault: str, patch: pytest.MonkeyPatch) -> str:
    """Run a case and judge it. What came of the workflow: 'done', or the code of its error."""
    flow = WORKFLOWS[name]
    try:
        async with asyncio.timeout(PATIENCE_S * 2):
            if flow.before is not None:
                await flow.before(stage)
            async with contextlib.AsyncExitStack() as stack:
                blow = await stack.enter_async_context(_struck(stage, step, fault, patch))
                outcome = await _outcome(flow.run(stage))
                told = [await _outcome(other) for other in blow.others]
                if fault.startswith("clock"):  # nobody sets it right again
                    await stage.check()
            assert blow.struck, f"{step} was not reached"
            assert all(one != "internal" for one in (outcome, *told)), (outcome, told)
            gone = fault in ("source killed",) or (fault == "source stopped meanwhile" and "done" in told)
            await stage.check(source_killed=gone)
            stage.outcomes.append((name, step, fault, outcome))
            return outcome
    finally:
        await stage.reset()


@contextlib.asynccontextmanager
async def _struck(stage: Stage, step: str, fault: str, patch: pytest.MonkeyPatch) -> AsyncIterator[Blow]:
    with patch.context() as inner:
        blow = Blow(stage, step, fault, inner)
        inner.setattr(steps, "inject", blow)
        try:
            yield blow
        finally:
            for undo in reversed(blow.undo):
                undo()


async def _outcome(work: Awaitable[object]) -> str:
    """'done', or the code of the error that its caller is told; an error has a sentence and says what to do."""
    try:
        await work
    except OSError as exc:  # as the API's edge tells it
        return _judged(from_os_error(exc))
    except RametError as exc:
        return _judged(exc)
    return "done"


def _judged(error: RametError) -> str:
    assert error.message.endswith((".", "!", ")", "'")), error.message
    return error.code
