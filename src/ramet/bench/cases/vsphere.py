"""The vSphere surface, by pyVmomi itself, beside the native API's own client in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

from ramet.api.client import Client
from ramet.bench.cases.ground import MICRO_GUEST, take_turns
from ramet.bench.figures import Figures, Target
from ramet.bench.outcome import Outcome
from ramet.bench.stage import Guest, Stage, daemon
from ramet.bench.stock import MICRO, furnish
from ramet.errors import RametError
from ramet.host.sqlite_store import SqliteStore
from ramet.host.store import Put
from ramet.machine.paths import StatePaths
from ramet.model.machine import Machine, Nic, Vm
from ramet.model.requests import ChangeVm, CloneVm
from ramet.model.views import CloneResult
from ramet.model.vm_ids import numbered_vm_id

if TYPE_CHECKING:
    from ramet.bench.vsphere_client import Door

PYVMOMI, NATIVE = "pyVmomi", "native API"
READ_MS, MORE_MS, LIST_S, UPDATE_MS = 1.5, 20.0, 3.0, 100.0
_RETURNED = (f"{PYVMOMI}: task returned", f"{NATIVE}: task returned")
_AT_ONCE = 100
_GATHER_S = 60.0


def surface(stage: Stage, outcome: Outcome) -> None:
    """One client over one connection: reads of a property, and clones of a pooled source."""
    from ramet.bench import vsphere_client as client

    reads, rounds = (200, 5) if stage.quick else (3000, 40)
    outcome.guest, figures = MICRO_GUEST.text, outcome.figures
    with _frozen(stage, MICRO_GUEST) as source, client.opened(stage.client) as door, door.connected() as content:
        vm = client.find_vm(content, source)
        stage.tell(f"{reads} reads")
        for _ in range(reads):
            began = time.monotonic()
            vm.name  # noqa: B018  # a property of pyVmomi is a request
            figures.add(f"{PYVMOMI}: read", (time.monotonic() - began) * 1000)
        with stage.pool(source, 2) as until_full:
            stage.tell(f"{rounds} clones in each way")
            take_turns(
                rounds,
                lambda _: _pooled(stage, figures, PYVMOMI, until_full, lambda name: client.clone(vm, name)),
                lambda _: _pooled(stage, figures, NATIVE, until_full, lambda name: _native(stage, source, name)),
            )
    outcome.targets = [
        figures.absolute("property read", f"{PYVMOMI}: read", READ_MS),
        figures.beyond("WaitForTask's return − the native task's", _RETURNED[0], _RETURNED[1], MORE_MS),
    ]


@contextlib.contextmanager
def _frozen(stage: Stage, guest: Guest) -> Iterator[str]:
    stage.tell(f"booting {guest.text}")
    with stage.booted(stage.name("source"), guest) as view:
        stage.freeze(view.name)
        yield view.name


def _pooled(
    stage: Stage, figures: Figures, who: str, until_full: Callable[[], None], make: Callable[[str], str]
) -> None:
    name = stage.name("clone")
    until_full()
    began = time.monotonic()
    task_id = make(name)
    took_ms = (time.monotonic() - began) * 1000
    result = CloneResult.model_validate((stage.client.get_task(task_id).result or [None])[0])
    figures.add(f"{who}: task returned", took_ms)
    figures.add(f"{who}: running", result.timings_ms.total)
    figures.add(f"{who}: more", took_ms - result.timings_ms.total)
    stage.remove(name)
    until_full()  # the pool's own work is not to fall into what is measured next


def _native(stage: Stage, source: str, name: str) -> str:
    task = stage.client.clone_vm(source, CloneVm(names=(name,), bare=True))
    stage.finish(task)
    return task.id


def crowd(stage: Stage, outcome: Outcome) -> None:
    """64 clients at once: each connects, clones, waits and disconnects."""
    from ramet.bench import vsphere_client as client

    count, rounds = (8, 2) if stage.quick else (64, 3)
    guest = Guest(MICRO, 256)
    outcome.guest, figures = guest.text, outcome.figures
    outcome.notes.append(f"{count} clients are {count} threads of one process, in both ways.")
    with _frozen(stage, guest) as source, client.opened(stage.client) as door:
        stage.tell(f"{rounds} times {count} clients in each way")
        take_turns(
            rounds,
            lambda _: _together(stage, figures, PYVMOMI, count, lambda name: _visit(door, source, name)),
            lambda _: _together(stage, figures, NATIVE, count, lambda name: _call(stage, source, name)),
        )
    outcome.targets = [
        Target(name="clients that succeeded", limit=count, measured=figures.of(f"{PYVMOMI}: succeeded").low,
               unit="clients", at_least=True),
        figures.ratio("throughput ÷ the native API's", f"{NATIVE}: wall", f"{PYVMOMI}: wall", 0.8, at_least=True),
    ]  # fmt: skip


def _visit(door: Door, source: str, name: str) -> None:
    from ramet.bench import vsphere_client as client

    with door.connected() as content:
        client.clone(client.find_vm(content, source), name)


def _call(stage: Stage, source: str, name: str) -> None:
    with Client(stage.state_dir / "run" / "api.sock") as client:
        client.finish_task(client.clone_vm(source, CloneVm(names=(name,), bare=True)), timeout_s=_GATHER_S)


def _together(stage: Stage, figures: Figures, who: str, count: int, visit: Callable[[str], None]) -> None:
    names, gate = [stage.name("crowd") for _ in range(count)], Barrier(count + 1)

    def come(name: str) -> bool:
        gate.wait(_GATHER_S)
        try:
            visit(name)
        except Exception as exc:  # whatever a client of others' raises is one that did not succeed
            stage.tell(f"{who}: {name}: {type(exc).__name__}: {exc}")
            return False
        return True

    with ThreadPoolExecutor(count) as pool:
        coming = [pool.submit(come, name) for name in names]
        gate.wait(_GATHER_S)
        began = time.monotonic()
        succeeded = sum(one.result() for one in coming)
        figures.add(f"{who}: wall", (time.monotonic() - began) * 1000)
    figures.add(f"{who}: succeeded", succeeded, "clients")
    for name in names:
        with contextlib.suppress(RametError):
            stage.remove(name)


def records(stage: Stage, outcome: Outcome) -> None:
    """VMs that are records alone, on a daemon of their own: listed, and watched by a client that waits."""
    count, rounds = (1000, 3) if stage.quick else (10_000, 5)
    outcome.guest, figures = f"none: {count} records", outcome.figures
    folder = stage.state_dir.parent / "records"
    stage.tell(f"writing {count} records")
    furnish(folder, set())
    asyncio.run(_write(folder, count))
    stage.tell("starting a daemon with them")
    with daemon(folder, clear=False) as client:  # records need no end
        _measure_records(client, figures, stage, count, rounds)
    outcome.targets = [
        figures.absolute(f"{count} VMs, three properties of each", f"{PYVMOMI}: list", LIST_S),
        figures.absolute("a change, until a client that waits has heard of it", f"{PYVMOMI}: update", UPDATE_MS),
    ]


async def _write(folder: Path, count: int) -> None:
    machines = [Machine(name=f"vm-{n:05}", nics=(Nic(id="net0"),)) for n in range(count)]
    vms = [Vm(id=numbered_vm_id(n), machine=machine) for n, machine in enumerate(machines)]
    store = await SqliteStore.open(StatePaths(folder).inventory)
    try:
        for start in range(0, count, _AT_ONCE):
            batch = vms[start : start + _AT_ONCE]
            entries = [Put(f"vm/{vm.id}", vm.model_dump(mode="json")) for vm in batch]
            await store.put_all([*entries, *(Put(f"vm-name/{vm.name}", {"id": vm.id}) for vm in batch)])
    finally:
        await store.aclose()


def _measure_records(client: Client, figures: Figures, stage: Stage, count: int, rounds: int) -> None:
    from ramet.bench.vsphere_client import Waiter, list_all, opened

    with opened(client) as door, door.connected() as content:
        stage.tell(f"{rounds} lists")
        for _ in range(rounds):
            began = time.monotonic()
            listed = list_all(content)
            figures.add(f"{PYVMOMI}: list", time.monotonic() - began, "s")
            figures.add("listed", listed, "VMs")
            began = time.monotonic()
            client.list_vms()
            figures.add(f"{NATIVE}: list", time.monotonic() - began, "s")
        stage.tell("changes, and a client that waits")
        waiter = Waiter(door)
        try:
            for n in range(2 * rounds):
                began = time.monotonic()
                client.change_vm(f"vm-{n:05}", ChangeVm(name=f"renamed-{n:05}"))
                changed = time.monotonic()
                figures.add(f"{NATIVE}: change", (changed - began) * 1000)
                figures.add(f"{PYVMOMI}: update", (waiter.arrival(f"renamed-{n:05}") - began) * 1000)
        finally:
            waiter.close()
