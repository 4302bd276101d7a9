"""The stage that cases of faults are performed on, and the one judge of what is left of them.

A case is a workflow, one of its steps (``ramet.machine.steps``), and a fault. It runs on a host in this process with a
guest that was booted once. `Stage.check` is the one judge of all cases: the source runs and is whole, nothing is left
that belongs to nobody, the inventory says what QEMU says, and whoever asked was told what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ramet.errors import NotFoundError, RametError, from_dict
from ramet.host.service import Host
from ramet.machine.live import LiveMachine
from ramet.model.host import Task, TaskState
from ramet.model.machine import VmState
from ramet.model.requests import CreateNetwork, CreateVm, DiskRequest, NicRequest
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
        zygotes = {pid for pid in with_library(rooms.paths.native) if _name(pid).startswith("ramet-zyg")}
        if len(zygotes) <= sum(1 for live in self.machines.values() if live.vm.frozen):
            pids |= zygotes
        problems = _differ("processes", with_library(rooms.paths.native), pids)
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


def with_library(native: Path) -> set[int]:
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
