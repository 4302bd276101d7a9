"""Stuns of a real QEMU with a real guest: what they give, and that the source goes on whatever is cut or killed.

Every test ends with the same question to the one source they share: does the guest go on, and are its sums right?
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ramet.errors import ForkError, QemuError, RametError, StateError, StunTooLongError
from ramet.hypervisor.devicestate import mac_patches, parse, replace_macs
from ramet.hypervisor.fork import ForkClient, ForkReply
from ramet.hypervisor.stun_client import StunHelper, release
from ramet.hypervisor.stun_link import HelperLostError, spawn
from ramet.hypervisor.stun_plan import PristineCheck, SnapshotStep, StunPlan, StunResult
from ramet.hypervisor.stun_wire import send
from ramet.memory.ledger import find_ram, guest_memory, parse_smaps
from tests.guest.kernel_kit import GuestKernel
from tests.guest.stun_guest import BOOT_S, RAM_MIB, Machine, Wire, build_initrd, plan
from tests.unit.hypervisor.stun_kit import wait_until

COMMANDS = ["stop", "transaction", "migrate", "cont"]
MACS = {f"52:54:00:aa:00:0{i}": f"52:54:00:bb:00:0{i}" for i in range(3)}
NICS = ("virtio-net-pci", "e1000e", "vmxnet3")
T = TypeVar("T")


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="stun-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def initrd(directory: Path, guest_kernel: GuestKernel) -> Path:
    return build_initrd(directory, guest_kernel.image)


@contextmanager
def booted(directory: Path, initrd: Path, name: str, *devices: str) -> Iterator[Machine]:
    base = directory / f"{name}-base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True, timeout=20)
    machine = Machine(directory, name, disks={"base": base}, devices=devices)
    machine.launch(initrd)
    try:
        machine.wait_ticks(timeout_s=BOOT_S)
        yield machine
    finally:
        machine.end()


@pytest.fixture(scope="module")
def shared(directory: Path, initrd: Path) -> Iterator[tuple[Machine, Wire]]:
    devices = [part for i, nic in enumerate(NICS) for part in ("-device", f"{nic},mac={list(MACS)[i]},romfile=")]
    with booted(directory, initrd, "source", *devices) as machine, Wire(machine) as wire:
        yield machine, wire


class Top:
    """The node that the source's disk is on: it moves with every snapshot."""

    node = "base"


@pytest.fixture
def source(shared: tuple[Machine, Wire]) -> Iterator[Machine]:
    machine, wire = shared
    wire.before.clear()
    wire.after.clear()
    yield machine
    assert machine.status() == "running"
    machine.wait_ticks()


@pytest.fixture
def wire(shared: tuple[Machine, Wire]) -> Wire:
    return shared[1]


class Helper:
    """A StunHelper in an event loop of its own, for tests that block."""

    def __init__(self, directory: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._helper = StunHelper(log_path=directory / "helper.log")
        self._do(self._helper.start())

    @property
    def pid(self) -> int | None:
        return self._helper.pid

    def stun(self, given: StunPlan, on_stopped: Callable[[], None] = lambda: None) -> StunResult:
        return self._do(self._helper.stun(given, on_stopped))

    def close(self) -> None:
        self._do(self._helper.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(BOOT_S)


@pytest.fixture
def helper(directory: Path) -> Iterator[Helper]:
    helper = Helper(directory)
    yield helper
    helper.close()


@pytest.fixture
def state() -> Iterator[int]:
    fd = os.memfd_create("state")
    yield fd
    os.close(fd)


def failure(helper: Helper, given: StunPlan, kind: type[RametError]) -> dict[str, Any]:
    with pytest.raises(kind) as caught:
        helper.stun(given)
    for active, overlay in caught.value.fields["snapshotted"]:
        assert active == Top.node
        Top.node = overlay
    return caught.value.fields


def in_force(machine: Machine) -> str:
    """The node that the guest's disk is on, as QEMU says."""
    with machine.monitor() as monitor:
        return str(next(d["inserted"]["node-name"] for d in monitor.call("query-block") if d.get("inserted")))


def end_children(result: StunResult) -> None:
    for fork in result.forks:
        signal.pidfd_send_signal(fork.pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, fork.pidfd, os.WEXITED)
        os.close(fork.pidfd)


def children_left(directory: Path) -> list[int]:
    found, prefix = [], Machine(directory, "").process_name
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, stat = (entry / "comm").read_text(), (entry / "stat").read_text()
            except OSError:
                continue
            if name.startswith(prefix) and stat.rpartition(")")[2].split()[0] != "Z":
                found.append(int(entry.name))
    return found


def test_a_stun_saves_the_state_forks_and_moves_the_disk(
    source: Machine, helper: Helper, state: int, directory: Path
) -> None:
    stopped = threading.Event()
    step, child = source.add_overlay(Top.node), Machine(directory, "kid-one")
    with child.request() as request:
        result = helper.stun(plan(source, state, snapshots=(step,), forks=(request,)), stopped.set)
    Top.node = step.overlay
    assert stopped.is_set()
    assert in_force(source) == step.overlay
    assert result.state_bytes == os.fstat(state).st_size > 10_000
    parsed = parse(os.pread(state, result.state_bytes, 0))
    assert ("ram", RAM_MIB << 20) in parsed.ram_blocks
    assert min(result.timings_ms()[f"{part}_ms"] for part in ("stop", "snapshot", "state", "fork", "resume")) > 0
    mine, its = (guest_memory(pid, RAM_MIB << 20) for pid in (source.process.pid, result.forks[0].pid))  # type: ignore[union-attr]
    assert its.unique_bytes < mine.resident_bytes / 4
    assert its.resident_bytes > mine.resident_bytes / 2
    with ForkClient.connect(source.path("fork"), timeout_s=5) as client:
        hinted = guest_memory(source.process.pid, RAM_MIB << 20, client.query().ram_address)  # type: ignore[union-attr]
    assert hinted.resident_bytes == pytest.approx(mine.resident_bytes, rel=0.1)
    end_children(result)


def _with_new_macs(argument: str) -> str:
    for old, new in MACS.items():
        argument = argument.replace(old, new)
    return argument


def test_a_clone_with_other_addresses_runs_and_keeps_them(
    source: Machine, helper: Helper, state: int, directory: Path
) -> None:
    """A real QEMU loads the patched stream, and what it saves in turn has the new addresses in all their places."""
    # Its own addresses on its command line, too: cards derive a serial number from them, which the state must match.
    clone = Machine(directory, "kid-clone", devices=tuple(map(_with_new_macs, source.devices)))
    clone.disks = {"base": directory / "kid.qcow2"}
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", clone.disks["base"], "64M"], check=True, timeout=20)
    with clone.request() as request:
        result = helper.stun(plan(source, state, forks=(request,)))
    try:
        saved = os.pread(state, result.state_bytes, 0)
        with clone.monitor() as monitor, open(directory / "patched", "wb+") as patched:
            patched.write(replace_macs(saved, MACS))
            patched.seek(0)
            capabilities = [{"capability": "x-ignore-shared", "state": True}]
            monitor.call("migrate-set-capabilities", capabilities=capabilities)
            monitor.reply(monitor.send(("getfd", {"fdname": "in"}), fd=patched.fileno())[0])
            monitor.call("migrate-incoming", uri="fd:in")
            while monitor.call("query-status")["status"] == "inmigrate":
                monitor.pause(0.005)
            monitor.call("cont")
        clone.wait_ticks()
        again = os.memfd_create("again")
        with Wire(clone):
            helper.stun(plan(clone, again))
        resaved = os.pread(again, 64 << 20, 0)
        os.close(again)
        for old, new in MACS.items():
            assert replace_macs(resaved, {old: new}) == resaved
        assert replace_macs(resaved, {new: old for old, new in MACS.items()}) != resaved
        clone.wait_ticks()
    finally:
        end_children(result)


def test_hold_and_release(source: Machine, helper: Helper, state: int, directory: Path) -> None:
    result = helper.stun(plan(source, state, hold=True))
    assert (result.held, source.status()) == (True, "postmigrate")
    seen = len(source.ticks())
    children: list[ForkReply] = []
    with ForkClient.connect(source.path("fork"), timeout_s=10) as client:
        for name in ("kid-a", "kid-b"):
            with Machine(directory, name).request() as request:
                children.append(client.fork(request))
    assert len(source.ticks()) == seen
    for child in children:
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        os.close(child.pidfd)
    asyncio.run(release(str(source.path("stun")), timeout_s=20))


def test_thirty_stuns_leave_no_descriptor_and_no_mapping(source: Machine, helper: Helper) -> None:
    """QEMU's I/O threads come and go with their stacks, so mappings are counted where they would hurt: in guest RAM."""
    assert source.process is not None
    assert helper.pid is not None

    def descriptors() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (source.process.pid, helper.pid)]  # type: ignore[union-attr]

    def stun() -> None:
        fd = os.memfd_create("state")
        helper.stun(plan(source, fd))
        os.close(fd)

    before = descriptors()
    for _ in range(30):
        stun()
    # What a stun used is closed a moment after its end is told, by QEMU and by the helper.
    wait_until(lambda: all(a <= b + 1 for a, b in zip(descriptors(), before, strict=True)), "descriptors are closed")
    assert len(find_ram(parse_smaps(Path(f"/proc/{source.process.pid}/smaps").read_bytes()), RAM_MIB << 20)) == 1
    assert len(os.listdir(f"/proc/{helper.pid}/task")) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_helper_is_killed(
    source: Machine, wire: Wire, helper: Helper, state: int, directory: Path, command: str, moment: str
) -> None:
    def kill() -> None:
        assert helper.pid is not None
        os.kill(helper.pid, signal.SIGKILL)

    step = source.add_overlay(Top.node)
    getattr(wire, moment)[command] = kill
    with Machine(directory, f"kid-{command}-{moment}").request() as request:
        fields = failure(helper, plan(source, state, snapshots=(step,), forks=(request,)), HelperLostError)
    assert fields["restored"] is True
    assert in_force(source) == Top.node
    assert children_left(directory) == []


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_daemon_dies(source: Machine, wire: Wire, state: int, directory: Path, command: str, moment: str) -> None:
    process, ours, records = spawn(directory / "helper.log")

    def die() -> None:
        ours.close()
        records.close()

    step = source.add_overlay(Top.node)
    getattr(wire, moment)[command] = die
    try:
        with Machine(directory, f"kid-{command}-{moment}2").request() as request:
            message, fds = plan(source, state, snapshots=(step,), forks=(request,)).to_wire()
            send(ours, {"id": 1, "what": "stun", "plan": message}, fds, timeout_s=5)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        die()
    Top.node = in_force(source)
    assert children_left(directory) == []


@pytest.mark.parametrize("command", ["stop", "transaction", "migrate"])
def test_the_connection_to_qemu_is_cut(source: Machine, wire: Wire, helper: Helper, state: int, command: str) -> None:
    def cut() -> None:
        raise ConnectionAbortedError

    step = source.add_overlay(Top.node)
    wire.after[command] = cut
    fields = failure(helper, plan(source, state, snapshots=(step,)), QemuError)
    assert fields["restored"] is True
    assert in_force(source) == Top.node


def test_a_transaction_with_a_missing_node_is_refused(source: Machine, helper: Helper, state: int) -> None:
    good, bad = source.add_overlay(Top.node), SnapshotStep("nobody", "nothing")
    fields = failure(helper, plan(source, state, snapshots=(good, bad)), QemuError)
    assert (fields["step"], fields["restored"], fields["snapshotted"]) == ("snapshot", True, [])
    assert in_force(source) == Top.node


def test_a_full_state_file_is_told_and_the_source_goes_on(source: Machine, helper: Helper, directory: Path) -> None:
    with open("/dev/full", "wb") as full:
        fields = failure(helper, plan(source, full.fileno()), QemuError)
    assert (fields["step"], fields["restored"]) == ("state", True)


def test_a_missing_fork_socket_is_told_before_the_stop(
    source: Machine, helper: Helper, state: int, directory: Path
) -> None:
    with Machine(directory, "kid-none").request() as request:
        given = plan(source, state, forks=(request,), fork_path=str(directory / "none"))
        fields = failure(helper, given, ForkError)
    assert (fields["step"], fields["restored"]) == ("prepare", True)


def test_a_program_that_cannot_be_run_is_told(source: Machine, helper: Helper, state: int, directory: Path) -> None:
    with Machine(directory, "kid-bad").request() as request:
        broken = type(request)(("/nonexistent", *request.argv[1:]), request.env, request.fds, request.name)
        fields = failure(helper, plan(source, state, forks=(request, broken)), ForkError)
    assert (fields["step"], fields["restored"]) == ("fork", True)
    assert children_left(directory) == []


@pytest.mark.parametrize("command", ["stop", "migrate"])
def test_the_bound_passes(source: Machine, wire: Wire, helper: Helper, state: int, command: str) -> None:
    """QEMU is made to sit still for longer than the stun may last."""
    assert source.process is not None
    pid = source.process.pid
    go_on = threading.Timer(0.6, os.kill, (pid, signal.SIGCONT))

    def sit_still() -> None:
        os.kill(pid, signal.SIGSTOP)
        go_on.start()

    wire.before[command] = sit_still
    fields = failure(helper, plan(source, state, bound_ms=200.0), StunTooLongError)
    go_on.join()
    assert (fields["step"], fields["restored"]) == ({"stop": "stop", "migrate": "state"}[command], True)


def test_an_overlay_that_was_written_to_is_not_taken_for_pristine(
    source: Machine, helper: Helper, state: int, directory: Path
) -> None:
    step = source.add_overlay(Top.node)
    helper.stun(plan(source, state, snapshots=(step,)))
    Top.node = step.overlay
    top = directory / f"{step.overlay}.qcow2"
    check = (PristineCheck(str(top)),)
    os.ftruncate(state, 0)
    os.lseek(state, 0, os.SEEK_SET)
    assert (helper.stun(plan(source, state, pristine=check))).snapshotted == ()
    with source.monitor() as monitor:
        words = 'qemu-io -d /machine/peripheral-anon/device[0]/virtio-backend "write 1M 64k"'
        said = monitor.call("human-monitor-command", **{"command-line": words})
        assert said == "", said
    fields = failure(helper, plan(source, state, pristine=check), StateError)
    assert (fields["reason"], fields["restored"]) == ("stale", True)


@pytest.mark.parametrize("command", ["stop", "migrate", "cont"])
def test_qemu_is_killed(directory: Path, initrd: Path, helper: Helper, state: int, command: str) -> None:
    name = f"victim-{command}"
    with booted(directory, initrd, name) as victim, Wire(victim) as wire:
        assert victim.process is not None
        wire.after[command] = victim.process.kill
        with Machine(directory, f"kid-of-{command}").request() as request, pytest.raises(QemuError) as caught:
            helper.stun(plan(victim, state, forks=(request,)))
    assert caught.value.fields["restored"] is False
    assert children_left(directory) == []


def test_a_source_that_qemu_will_not_save_goes_on(directory: Path, initrd: Path, helper: Helper, state: int) -> None:
    """An NVMe controller of QEMU 7.2 cannot be saved, and only `migrate` itself says so."""
    blank = directory / "nvme.raw"
    blank.write_bytes(bytes(1 << 20))
    drive = ("-blockdev", f"driver=raw,node-name=nv,file.driver=file,file.filename={blank}")
    with booted(directory, initrd, "unsaved", *drive, "-device", "nvme,drive=nv,serial=1") as machine, Wire(machine):
        with pytest.raises(QemuError) as caught:
            helper.stun(plan(machine, state))
        assert caught.value.fields["restored"] is True
        assert machine.status() == "running"
        machine.wait_ticks()


WIDE = (
    *("-smp", "4,sockets=2", "-device", "virtio-vga", "-device", "virtio-gpu-pci", "-device", "qemu-xhci"),
    *("-device", "usb-tablet", "-device", "virtio-balloon-pci", "-device", "virtio-rng-pci", "-device", "vmcoreinfo"),
    *("-device", "virtio-serial-pci", "-device", "virtio-scsi-pci", "-device", "pcie-root-port,chassis=1,id=rp0"),
    *("-netdev", "user,id=u0", "-device", "vmxnet3,netdev=u0,mac=52:54:00:aa:00:08"),
    *("-netdev", "user,id=u1", "-device", "e1000e,netdev=u1,bus=rp0,mac=52:54:00:aa:00:09"),
    *("-device", "ide-cd,bus=ide.0", "-device", "i6300esb", "-device", "pvpanic", "-device", "vmgenid"),
)


def test_the_state_of_wide_hardware_is_read(directory: Path, initrd: Path, helper: Helper, state: int) -> None:
    """User-mode networking and others save sections that QEMU's description knows little of."""
    with booted(directory, initrd, "wide", *WIDE) as machine, Wire(machine):
        result = helper.stun(plan(machine, state))
    saved = os.pread(state, result.state_bytes, 0)
    parsed = parse(saved)
    assert {"slirp", "cpu", "globalstate"} <= {section.name for section in parsed.devices}
    assert len([section for section in parsed.devices if section.name == "cpu"]) == 4
    assert len(mac_patches(saved, {"52:54:00:aa:00:09": "52:54:00:bb:00:09"})) == 6
