"""Page sharing for the whole host: switched on and off, kept so for every VM, and put back as it was found.

    sharing = SharingDesk(floor, tasks, locks)
    await sharing.set(SetPageSharing(mode="host")) -> Task        # CapacityError, PrivilegeError, UnsupportedError
    await sharing.view() -> PageSharingView
    await sharing.run()                                           # until cancelled; first what a crash left half done

On is a word to the library in each process (a fork begins with its parent's), and ksmd made to run if it did not. What
was changed of the kernel's knobs stands in the inventory before it is changed, and goes back when page sharing is
switched off, by whichever daemon that is: a knob that somebody else has turned since stays as it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from pydantic import Field

from ramet.errors import BusyError, CapacityError, ForkError, PrivilegeError, RametError, UnsupportedError
from ramet.host.floor import Floor
from ramet.host.locks import VmLocks
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.hypervisor.fork import ForkClient, LibraryInfo
from ramet.hypervisor.process import boot_id
from ramet.memory.ksm import RUN, RUNS, Ksm
from ramet.model.base import Model
from ramet.model.host import Task
from ramet.model.sharing import MergedMemory, PageSharing, PageSharingView, SetPageSharing

log = structlog.stdlib.get_logger(__name__)

SETTING = "page-sharing"
PACE = {"pages_to_scan": 500, "sleep_millisecs": 20}
"""What ksmd may look at: 100 MiB a second at most, some hundredths of one processor."""
LOOK_EVERY_S = 10.0
"""For VMs that were started since: there is no hurry to merge."""
ASK_TIMEOUT_S = 5.0
UNMERGE_TIMEOUT_S = 300.0
LOCK_PATIENCE_S = 10.0
FORGET_S = 5.0


class Kept(Model):
    """What the inventory remembers while page sharing is on, and until all is undone after it was switched off."""

    mode: PageSharing
    since: float
    cpu_s: float | None = None
    """ksmd's until then."""
    boot_id: str
    """After a reboot the kernel has its own knobs again."""
    before: dict[str, int] = Field(default_factory=dict)
    set: dict[str, int] = Field(default_factory=dict)


class SharingDesk:
    """One a host. `ksm` is another in tests, and so is `ask`, which speaks to the library behind a socket."""

    def __init__(
        self,
        floor: Floor,
        tasks: TaskManager,
        locks: VmLocks,
        ksm: Ksm | None = None,
        ask: Callable[[Path, bool | None], LibraryInfo] | None = None,
    ) -> None:
        self._floor = floor
        self._tasks = tasks
        self._locks = locks
        self._ksm = ksm or Ksm()
        self._ask = ask or ask_library
        self._changing = asyncio.Lock()
        self._told: str | None = None

    # -- what callers ask --------------------------------------------------------------------------------------------

    async def set(self, request: SetPageSharing, by_uid: int | None = None) -> Task:
        """Refuses at once what cannot be; then all VMs one after the other, as a task."""
        if request.mode is PageSharing.HOST:
            self._check_can_merge()
        else:
            await self._check_can_unmerge()

        async def work(handle: TaskHandle) -> dict[str, str]:
            async with self._changing:
                with handle.step(f"page sharing {request.mode.value}"):
                    await (self._switch_on() if request.mode is PageSharing.HOST else self._switch_off(handle))
            return {"mode": request.mode.value}

        return await self._tasks.start("host.page-sharing", request.mode.value, work, by_uid=by_uid)

    async def view(self) -> PageSharingView:
        kept = self._kept()
        vms = await asyncio.to_thread(self._merged) if kept is not None else []
        try:
            seen = await asyncio.to_thread(self._ksm.counters)
        except OSError:
            return PageSharingView(mode=self.mode, problem=f"{self._ksm.problem or 'Unknown'}.")
        cpu_s = None if kept is None or seen.cpu_s is None else max(0.0, seen.cpu_s - (kept.cpu_s or 0.0))
        return PageSharingView(
            mode=self.mode,
            problem=self._problem(seen.running),
            unmerging=kept is not None and kept.mode is PageSharing.OFF,
            running=seen.running,
            started_here=kept is not None and RUN in kept.set,
            since=kept.since if kept else None,
            shared_bytes=seen.shared_bytes,
            saved_bytes=seen.sharing_bytes,
            profit_bytes=seen.profit_bytes,
            cpu_s=None if cpu_s is None else round(cpu_s, 2),
            cpu_percent=None if cpu_s is None or kept is None else _percent(cpu_s, time.time() - kept.since),
            full_scans=seen.full_scans,
            pages_to_scan=seen.pages_to_scan,
            sleep_ms=seen.sleep_ms,
            vms=tuple(vms),
            unmerge_bytes=sum(vm.merged_bytes for vm in vms),
        )

    @property
    def mode(self) -> PageSharing:
        kept = self._kept()
        return kept.mode if kept is not None else PageSharing.OFF

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if not self._changing.locked():
                async with self._changing:
                    await self._look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        try:
            kept = self._kept()
            if kept is None:
                return
            await (self._keep_on(kept) if kept.mode is PageSharing.HOST else self._finish_off(None))
        except (RametError, OSError) as exc:
            self._tell(str(exc))
        except Exception as exc:  # a bug of ours here must not end the guard, which runs beside it
            log.exception("page sharing could not be looked after")
            self._tell(f"{type(exc).__name__}; the daemon's log says more.")
        else:
            self._tell(None)

    async def _keep_on(self, kept: Kept) -> None:
        if kept.boot_id != boot_id():
            await self._switch_on()
            return
        for directory in await self._marked(merging=False):
            await asyncio.to_thread(self._ask, directory / "fork", True)
        problem = self._problem(await asyncio.to_thread(lambda: self._ksm.is_running))
        if problem is not None:
            raise UnsupportedError(problem)

    def _tell(self, problem: str | None) -> None:
        """An event for each problem, not for each look."""
        if problem is not None and problem != self._told:
            self._floor.rooms.book.emit("host.warning", f"Page sharing: {problem}")
        self._told = problem

    # -- on ----------------------------------------------------------------------------------------------------------

    def _check_can_merge(self) -> None:
        problem = self._ksm.problem
        if problem is None or self._ksm.is_running:
            return
        if not self._ksm.exists:
            raise UnsupportedError(f"{problem}.", hint="Memory is shared inside a lineage all the same: clone.")
        raise PrivilegeError(f"{problem}.", hint="Start the daemon as root, or have root start it: 'ramet doctor'.")

    async def _switch_on(self) -> None:
        before = self._kept()
        knobs = await asyncio.to_thread(self._ksm.knobs)
        wanted = {} if self._ksm.problem or knobs[RUN] == RUNS else {**PACE, RUN: RUNS}
        kept = Kept(
            mode=PageSharing.HOST,
            since=time.time(),
            cpu_s=await asyncio.to_thread(self._ksm.cpu_s),
            boot_id=boot_id(),
            before={name: knobs[name] for name in wanted},
            set=wanted,
        )
        if before is not None and before.boot_id == kept.boot_id:  # it is on, or was not quite off
            wanted, kept = before.set, before.changed(mode=PageSharing.HOST)
        await self._keep(kept)
        await asyncio.to_thread(self._ksm.turn, wanted)
        for directory in await self._marked(merging=False):
            await asyncio.to_thread(self._ask, directory / "fork", True)
        self._floor.rooms.book.emit("host.page-sharing", "Pages are shared among all guests.", mode="host")

    # -- off ---------------------------------------------------------------------------------------------------------

    async def _check_can_unmerge(self) -> None:
        if self._kept() is not None:
            merged = await asyncio.to_thread(self._merged)
            self._floor.rooms.admission.check_unmerge(sum(vm.merged_bytes for vm in merged))

    async def _switch_off(self, handle: TaskHandle) -> None:
        kept = self._kept()
        if kept is None:
            return
        await self._keep(kept.changed(mode=PageSharing.OFF))
        await self._finish_off(handle)

    async def _finish_off(self, handle: TaskHandle | None) -> None:
        """VM by VM, each admitted for itself; then the kernel as it was found. Raises what keeps one from it: `run`
        goes on with it later."""
        while marked := await self._marked(merging=True):
            for index, directory in enumerate(marked):
                if handle is not None:
                    handle.progress(99 * index / len(marked), f"unmerging {self._name(directory)}")
                await self._unmerge(directory)
        kept = self._kept()
        if kept is not None and kept.boot_id == boot_id():
            await self._let_it_forget()
            await asyncio.to_thread(self._put_back, kept)
        await self._keep(None)
        self._floor.rooms.book.emit("host.page-sharing", "Pages are shared inside lineages only.", mode="off")

    async def _let_it_forget(self) -> None:
        """What the kernel noted about pages that it looked at, 1.5 % of their size, is freed when ksmd comes by again:
        were it stopped at once, that would stay, and its counters with it."""
        deadline = time.monotonic() + FORGET_S
        began = await asyncio.to_thread(self._ksm.counters)
        while time.monotonic() < deadline and self._ksm.is_running:
            await asyncio.sleep(0.05)
            if (await asyncio.to_thread(self._ksm.counters)).full_scans >= began.full_scans + 2:
                return

    async def _unmerge(self, directory: Path) -> None:
        """Under the VM's lock: a stun would wait for the library, which is busy; and no fork begins merged after it."""
        async with self._held(directory):
            try:
                pid = (await asyncio.to_thread(self._ask, directory / "fork", None)).pid
                self._floor.rooms.admission.check_unmerge(await asyncio.to_thread(self._ksm.merged_bytes, pid))
                await asyncio.to_thread(self._ask, directory / "fork", False)
            except OSError:
                return  # it has ended meanwhile
            except ForkError as exc:
                if directory.exists():
                    reason = exc.message.rpartition(": ")[2]
                    raise CapacityError(
                        f"The pages of {self._name(directory)!r} could not be unmerged: {reason}",
                        hint="Make memory free; page sharing goes on being switched off by itself.",
                    ) from exc

    @asynccontextmanager
    async def _held(self, directory: Path) -> AsyncIterator[None]:
        if directory.name not in self._floor.machines:  # a holder, which nobody else asks for anything but forks
            yield
            return
        try:
            async with self._locks.hold(directory.name, "unmerge", wait_s=LOCK_PATIENCE_S):
                yield
        except BusyError as exc:
            exc.hint = exc.hint or "Page sharing goes on being switched off by itself."
            raise

    def _put_back(self, kept: Kept) -> None:
        """`run` first: ksmd stops before its pace changes."""
        try:
            now = self._ksm.knobs()
            ours = {name: value for name, value in kept.before.items() if now.get(name) == kept.set.get(name)}
            self._ksm.turn({name: value for name, value in ours.items() if name == RUN})
            self._ksm.turn({name: value for name, value in ours.items() if name != RUN})
        except OSError as exc:
            log.warning("the kernel's page merging could not be put back as it was", error=str(exc))

    # -- who takes part ----------------------------------------------------------------------------------------------

    async def _marked(self, *, merging: bool) -> list[Path]:
        """Run directories whose process has guest RAM that is marked as mergeable, or not."""
        return await asyncio.to_thread(lambda: [d for d, info in self._asked() if info.merging is merging])

    def _asked(self) -> list[tuple[Path, LibraryInfo]]:
        """Every process with guest RAM: QEMUs and holders, those that no daemon has adopted too. Blocking."""
        found = []
        for directory in sorted(self._floor.rooms.paths.run.iterdir()):
            if not (directory / "fork").exists():
                continue
            try:
                info = self._ask(directory / "fork", None)
            except (RametError, OSError):
                continue  # ended, or hangs: asked again at the next look
            if info.ram_bytes:
                found.append((directory, info))
        return found

    def _merged(self) -> list[MergedMemory]:
        """Blocking, some milliseconds a GiB."""
        found = []
        for directory, info in self._asked():
            try:
                merged, profit = self._ksm.merged_bytes(info.pid), self._ksm.profit_bytes(info.pid)
            except OSError:
                continue
            if info.merging or merged:
                name = self._name(directory)
                found.append(MergedMemory(id=directory.name, name=name, merged_bytes=merged, profit_bytes=profit))
        return sorted(found, key=lambda one: one.name)

    def _name(self, directory: Path) -> str:
        live = self._floor.machines.get(directory.name)
        return live.name if live is not None else directory.name

    # -- what is remembered ------------------------------------------------------------------------------------------

    def _problem(self, running: bool) -> str | None:
        if running or (self._ksm.problem is None and self.mode is PageSharing.OFF):
            return None
        return f"{self._ksm.problem}." if self._ksm.problem else "Somebody else has stopped ksmd: no pages are merged."

    def _kept(self) -> Kept | None:
        stored: Any = self._floor.inventory.setting(SETTING)
        return None if stored is None else Kept.model_validate(stored)

    async def _keep(self, kept: Kept | None) -> None:
        await self._floor.inventory.put_setting(SETTING, None if kept is None else kept.model_dump(mode="json"))


def ask_library(socket: Path, merge: bool | None) -> LibraryInfo:
    """What a process says of its guest RAM, after it has been told to have it merged, or unmerged. Blocking."""
    with ForkClient.connect(socket, UNMERGE_TIMEOUT_S if merge is False else ASK_TIMEOUT_S) as client:
        if merge is not None:
            client.merge(merge)
        return client.query()


def _percent(part_s: float, whole_s: float) -> float:
    return round(100 * part_s / max(whole_s, 0.001), 2)
