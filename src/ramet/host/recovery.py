"""After a start: adopt the VMs that run, finish or undo what a crash left half done, remove what belongs to nobody.

The order matters. First every VM's process is found again, or its absence noted; then the journal's operations are
settled; then, with the inventory true again, strays are removed: processes, sockets, taps, layers, files.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from pathlib import Path

from ramet.clone import pool
from ramet.errors import RametError
from ramet.host.floor import Floor
from ramet.host.journal import Journal
from ramet.hypervisor.ending import read_ending
from ramet.hypervisor.process import QemuProcess
from ramet.hypervisor.rundir import RunDir
from ramet.hypervisor.stray import end_behind
from ramet.hypervisor.stun_client import release
from ramet.machine.blocks import follow_disks
from ramet.machine.hardware import follow_devices
from ramet.machine.live import LiveMachine
from ramet.machine.paths import StatePaths
from ramet.model.host import JournalEntry
from ramet.model.machine import Vm, VmState
from ramet.network.taps import tap_name

_log = logging.getLogger(__name__)

_AT_ONCE = 500
"""VMs that one turn in a thread looks at."""
_PAUSE_REASONS = {"io-error": "disk error or full disk", "guest-panicked": "guest panicked", "internal-error": "QEMU"}


class Recovery:
    """Runs once, before the API is open."""

    def __init__(self, floor: Floor, journal: Journal) -> None:
        self._floor = floor
        self._journal = journal

    async def run(self) -> None:
        entries = self._journal.pending()
        unborn = {str(vm_id) for entry in entries for vm_id in entry.detail.get("clones", ())}
        await self._recover_all(self._floor.inventory.vms(), unborn)
        for entry in entries:
            await self._settle(entry)
            await self._journal.erase(entry.id)
        await self._drop_moments()
        await self._remove_strays()

    # -- VMs -------------------------------------------------------------------------------------------------------

    async def _recover_all(self, vms: list[Vm], unborn: set[str]) -> None:
        """Those that were off many at a time: of them there may be thousands, and a thread for each takes a minute."""
        off = [vm for vm in vms if vm.process is None]
        for start in range(0, len(off), _AT_ONCE):
            lives = [self._know(vm) for vm in off[start : start + _AT_ONCE]]
            await asyncio.to_thread(self._clear_behind, lives)
            for live in lives:
                await self._note_end(live, half_made=live.id in unborn)
        for vm in vms:
            if vm.process is not None:
                await self._recover_vm(self._know(vm), half_made=vm.id in unborn)

    def _know(self, vm: Vm) -> LiveMachine:
        live = LiveMachine(self._floor.rooms, vm)
        self._floor.add(live)
        return live

    def _clear_behind(self, lives: list[LiveMachine]) -> None:
        """Of VMs without a process: what somebody else's fork left, and their control groups. Blocking."""
        rooms = self._floor.rooms
        ran, grouped = set(os.listdir(rooms.paths.run)), rooms.cgroups.vms()
        for live in lives:
            if live.id in ran:
                self._end_all_behind(live.run_dir.path)
            if live.id in grouped:
                live.unconfine()

    async def _recover_vm(self, live: LiveMachine, *, half_made: bool) -> None:
        recorded = live.vm.process
        process = QemuProcess.adopt(recorded, log_dir=self._floor.rooms.paths.vm(live.id)) if recorded else None
        if process is None:
            await asyncio.to_thread(self._clear_behind, [live])
            await self._note_end(live, half_made=half_made)
            return
        await self._end_behind(live.run_dir.zygote.path)  # the next clone makes another
        await self._try_adopt(live, process)

    async def _try_adopt(self, live: LiveMachine, process: QemuProcess) -> bool:
        """A VM that does not answer is left alone, and tried again: a busy QEMU is no reason to lose a guest."""
        try:
            await self._adopt(live, process)
            await asyncio.to_thread(live.confine, process)  # it may have been cut off before
            if live.process is None:
                await asyncio.to_thread(live.unconfine)
            return True
        except (RametError, OSError) as exc:
            _log.error("%s does not answer yet: %s", live.name, exc)
            self._floor.rooms.book.emit("host.warning", f"{live.name} does not answer its daemon: {exc}", live.vm)
            await live.detach()
            return False

    async def adopt_lost(self) -> bool:
        """Once more for VMs that run and did not answer; whether there are some that do now."""
        found = False
        for live in list(self._floor.machines.values()):
            if live.vm.process is None or live.process is not None:
                continue
            process = QemuProcess.adopt(live.vm.process, log_dir=self._floor.rooms.paths.vm(live.id))
            if process is None:
                await asyncio.to_thread(live.unconfine)
                await self._note_end(live, half_made=False)
            else:
                found |= await self._try_adopt(live, process)
        return found

    async def remove_groups(self) -> None:
        """Of VMs that are off, whose clones were in them when they ended."""
        for live in list(self._floor.machines.values()):
            if live.group_left and not live.vm.is_on:
                await asyncio.to_thread(live.unconfine)

    async def _note_end(self, live: LiveMachine, *, half_made: bool) -> None:
        """The record of one without a process says so."""
        vm = live.vm
        if vm.is_pooled or vm.provisional or (half_made and vm.state is VmState.STARTING):
            await self._floor.rooms.book.forget(vm.id)
        elif vm.state is VmState.STARTING and self._floor.rooms.paths.suspended_state(vm.id).exists():
            await live.change(state=VmState.SUSPENDED, process=None)
        elif vm.state not in (VmState.OFF, VmState.SUSPENDED):
            ending = await asyncio.to_thread(read_ending, self._floor.rooms.paths.vm(vm.id))
            how = f" ({ending.reason})" if ending is not None else ""
            await live.change(state=VmState.OFF, process=None, moment_id=None, pause_reason=None, started_at=None)
            self._floor.rooms.book.emit("vm.state", f"{vm.name} ended while the daemon was down{how}.", live.vm)
            if ending is not None and ending.wants_restart and vm.state is not VmState.STOPPING:
                self._floor.rooms.book.guest_asks_restart(vm.id)

    async def _adopt(self, live: LiveMachine, process: QemuProcess) -> None:
        if live.vm.state is VmState.READY:
            await self._adopt_ready(live, process)
            return
        moment = self._floor.inventory.moments.get(live.vm.moment_id or "")
        pending = bytes.fromhex(moment.pending_rpc_hex) if moment else b""
        await live.attach(process, pending_rpc=pending, inherited=False)
        await follow_devices(live)
        live.taps = _taps_of(live)
        await follow_disks(live)  # a crash in a stun may have come after the disks moved on to their overlays
        await self._adopt_state(live, frozen=moment is not None)

    async def _adopt_ready(self, live: LiveMachine, process: QemuProcess) -> None:
        """A clone of a pool goes on waiting; one that was just taken, and may not have executed yet, does so now."""
        moment_id = live.vm.lineage.moment_id if live.vm.lineage else ""
        moment = self._floor.inventory.moments.get(moment_id)
        await live.attach(process, pending_rpc=bytes.fromhex(moment.pending_rpc_hex) if moment else b"")
        live.taps = _taps_of(live)
        if not live.vm.is_pooled:
            await pool.let_go(live)

    async def _adopt_state(self, live: LiveMachine, *, frozen: bool) -> None:
        status = (await live.qmp.status()).status
        if status == "postmigrate" and frozen and live.vm.state is VmState.FROZEN:
            return
        if status in _PAUSE_REASONS:
            await live.change(state=VmState.PAUSED, pause_reason=_PAUSE_REASONS[status], moment_id=None)
            return
        if status not in ("running", "shutdown"):  # stopped by a stun, a start or a suspend that was cut off
            await release(str(live.run_dir.stun), timeout_s=live.rooms.limits.qmp_s)
        if live.vm.state is not VmState.RUNNING or live.vm.moment_id is not None:
            await live.change(state=VmState.RUNNING, pause_reason=None, moment_id=None)
            live.guest.thaw()

    # -- the journal -----------------------------------------------------------------------------------------------

    async def _settle(self, entry: JournalEntry) -> None:
        """Undo what an operation was making, unless it came to stand in the inventory; finish a removal."""
        _log.info("settling %s, begun before a restart", entry.kind)
        rooms, inventory = self._floor.rooms, self._floor.inventory
        if moment_id := entry.detail.get("moment_id"):
            await self._end_behind(rooms.paths.vm_run(f"m-{moment_id}"))
        known = {vm.id for vm in inventory.vms()}
        for vm_id in map(str, entry.detail.get("clones", ())):
            if vm_id in known and entry.kind != "remove":
                continue
            live = self._floor.machines.get(vm_id)
            if live is not None:  # it was adopted: its watch would record its end, after it was forgotten
                await live.detach()
            await self._end_behind(rooms.paths.vm_run(vm_id))
            if live is not None:
                await asyncio.to_thread(live.unconfine)
            await rooms.book.forget(vm_id)
            await asyncio.to_thread(shutil.rmtree, rooms.paths.vm(vm_id), ignore_errors=True)
        live = self._floor.machines.get(entry.vm_id or "")
        if live is not None and live.vm.state is not VmState.SUSPENDED and "state_file" in entry.detail:
            Path(str(entry.detail["state_file"])).unlink(missing_ok=True)

    async def _drop_moments(self) -> None:
        """Moments that no frozen VM holds."""
        held = {live.vm.moment_id for live in self._floor.machines.values()}
        for moment in self._floor.inventory.moments.all():
            if moment.id not in held:
                await self._floor.rooms.book.drop_moment(moment.id)
        kept = {moment.id for moment in self._floor.inventory.moments.all()}
        for file in self._floor.rooms.paths.moment_state("x").parent.iterdir():
            if file.stem not in kept:
                file.unlink(missing_ok=True)

    # -- strays ----------------------------------------------------------------------------------------------------

    async def _remove_strays(self) -> None:
        rooms = self._floor.rooms
        stale = [live.id for live in self._floor.machines.values() if live.vm.state is not VmState.SUSPENDED]
        await asyncio.to_thread(_remove_suspended, rooms.paths, stale)
        on = {live.id for live in self._floor.machines.values() if live.vm.is_on}
        for directory in rooms.paths.run.iterdir():
            if directory.is_dir() and directory != rooms.paths.native and directory.name not in on:
                await self._end_behind(directory)
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        for directory in (rooms.paths.root / "vms").iterdir():
            if directory.name not in self._floor.machines:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        if rooms.networks.privileged:
            # By the record: one that runs and does not answer yet needs its taps all the same.
            taps = {tap for live in self._floor.machines.values() if live.vm.is_on for tap in _taps_of(live).values()}
            known = {tap_name(vm.id, nic.index) for vm in self._floor.inventory.vms() for nic in vm.machine.nics}
            groups = {network.name for network in self._floor.inventory.networks.all()}
            await rooms.networks.collect(taps, groups, known)
        await asyncio.to_thread(rooms.layers.remove_temporaries)
        await self._floor.collect_layers()

    async def _end_behind(self, directory: Path) -> None:
        """End processes that nobody recorded: the library in them says who they are."""
        await asyncio.to_thread(self._end_all_behind, directory)

    def _end_all_behind(self, directory: Path) -> None:
        for place in (RunDir(directory), RunDir(directory).zygote):
            end_behind(place, self._floor.rooms.native)


def _remove_suspended(paths: StatePaths, vm_ids: list[str]) -> None:
    for vm_id in vm_ids:
        paths.suspended_state(vm_id).unlink(missing_ok=True)


def _taps_of(live: LiveMachine) -> dict[str, str]:
    return {nic.id: tap_name(live.id, nic.index) for nic in live.vm.machine.nics if not nic.is_user_mode}
