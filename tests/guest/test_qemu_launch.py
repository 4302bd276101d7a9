"""Real QEMUs from plans: every device family, block nodes rearranged live, hot-plug, forks, ends, and nothing left."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.errors import DeadlineError, QemuError
from ramet.hypervisor.accelerator import probe
from ramet.hypervisor.blocknodes import DiskChain, LayerFile
from ramet.hypervisor.ending import read_ending
from ramet.hypervisor.fork import ForkClient, ForkRequest, NativePaths, install_native
from ramet.hypervisor.plan import NicBackend, RunDir, build_plan
from ramet.hypervisor.process import QemuProcess, find_user
from ramet.hypervisor.version import Qemu, find_qemu
from ramet.model.machine import Accelerator, Display, Firmware, KernelBoot, Machine, Nic, NicModel
from tests.guest.kernel_kit import GuestKernel
from tests.guest.leaks import left_behind
from tests.guest.qemu_kit import (
    BOOT_S,
    WAIT_S,
    Running,
    boot_files,
    connect,
    disk_of,
    launch,
    locked_ranges,
    make_layer,
    read_only,
    writable_descriptors,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU on this host"),
]

PNG = b"\x89PNG\r\n\x1a\n"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def qemu() -> Qemu:
    return await find_qemu()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short one, for sockets, open to QEMU's user; what is left running of it is a failure."""
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        left = left_behind(path)
    assert not left, left


@pytest.fixture(scope="module")
def native() -> Iterator[NativePaths]:
    with tempfile.TemporaryDirectory(prefix="rn-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield install_native(Path(name) / "lib")


@pytest.fixture(scope="module")
def kernel(guest_kernel: GuestKernel) -> Iterator[KernelBoot]:
    with tempfile.TemporaryDirectory(prefix="rk-", dir="/tmp") as name:
        yield boot_files(Path(name), guest_kernel)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guest(qemu: Qemu, kernel: KernelBoot) -> AsyncIterator[Running]:
    """A Linux guest with two processors, a disk and a CD, as QEMU's own user; its shell is on the console."""
    with tempfile.TemporaryDirectory(prefix="rg-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        disc = directory / "disc.iso"
        disc.write_bytes(b"the disc's content\n".ljust(4096, b"\0"))
        base = make_layer(directory, "base")
        chain = disk_of("disk0", make_layer(directory, "top", base="base"), base)
        machine = Machine(
            name="guest",
            memory_mib=256,
            vcpus=2,
            kernel=kernel,
            disks=(chain.disk,),
            nics=(Nic(id="net0", network="user"),),
            cdroms=(str(disc),),
        )
        async with await launch(qemu, directory, machine, [chain], user=find_user()) as running:
            await running.console_says("ready")
            yield running


# -- hardware ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", list(NicModel))
async def test_each_nic_model(model: NicModel, qemu: Qemu, directory: Path) -> None:
    nic = Nic(id="net0", model=model, network="user")
    machine = Machine(name="nic", memory_mib=64, nics=(nic,))
    async with await launch(qemu, directory, machine, paused=True) as running:
        mac = await running.qmp.execute("qom-get", {"path": "/machine/peripheral/net0", "property": "mac"})
        assert mac == nic.mac
        await running.qmp.set_link("net0", up=False)
        await running.qmp.set_link("net0", up=True)


async def test_processors_and_devices_are_where_the_plan_says(guest: Running) -> None:
    processors = await guest.qmp.execute("query-cpus-fast")
    assert len(processors) == 2
    async with guest.shell() as shell:
        assert await shell.run("grep -c ^processor /proc/cpuinfo") == "2"
        flags = (await shell.run("grep -m1 ^flags /proc/cpuinfo")).split()
        assert {"ssse3", "sse4_1", "sse4_2", "popcnt", "cx16"} <= set(flags)
        assert "la57" not in flags
        devices = await shell.run("for d in /sys/bus/pci/devices/*; do echo ${d##*/} $(cat $d/class); done")
        assert devices.count("0x060400") == 8  # the root ports
        assert "rng" in await shell.run("cat /sys/class/misc/hw_random/rng_available")
        ports = await shell.run("cat /sys/class/virtio-ports/*/name")
        assert sorted(ports.split()) == ["org.qemu.guest_agent.0", "org.ramet.rpc.0"]


async def test_a_cloud_kernel_reads_the_cd(guest: Running) -> None:
    async with guest.shell() as shell:
        assert await shell.run("head -n 1 /dev/sr0") == "the disc's content"


async def test_the_disk_takes_writes_and_knows_its_name(guest: Running) -> None:
    async with guest.shell() as shell:
        assert await shell.run("cat /sys/block/vda/serial") == "disk0"
        await shell.run("echo written | dd of=/dev/vda bs=512 count=1 conv=sync,fsync 2>/dev/null")
        assert await shell.run("head -n 1 /dev/vda") == "written"


async def test_the_clock_is_the_hosts_in_utc(guest: Running) -> None:
    async with guest.shell() as shell:
        seconds = int(await shell.run("date +%s"))
    assert abs(seconds - time.time()) < WAIT_S


@pytest.mark.parametrize("display", [Display.VGA, Display.VIRTIO])
async def test_a_display_has_a_picture_and_vnc(display: Display, qemu: Qemu, directory: Path) -> None:
    machine = Machine(name="screen", memory_mib=64, display=display)
    async with await launch(qemu, directory, machine, user=find_user()) as running:
        picture = await running.qmp.screendump()
        assert picture.startswith(PNG)
        reader, writer = await asyncio.open_unix_connection(running.run_dir.vnc)
        async with asyncio.timeout(WAIT_S):
            assert (await reader.readexactly(12)).startswith(b"RFB ")
        writer.close()
        await writer.wait_closed()
        sets = await running.qmp.execute("query-fdsets")
        assert not any(fd.get("opaque") == "screendump" for fdset in sets for fd in fdset["fds"])


async def test_a_vm_without_a_display_says_so(qemu: Qemu, directory: Path) -> None:
    async with await launch(qemu, directory, Machine(name="blind", memory_mib=64), paused=True) as running:
        with pytest.raises(QemuError, match="QEMU refused screendump"):
            await running.qmp.screendump()


async def test_uefi_with_variables_of_its_own(qemu: Qemu, directory: Path) -> None:
    if not qemu.has_uefi or qemu.firmware_vars is None:
        pytest.skip("no UEFI firmware on this host")
    layer = directory / "vars.qcow2"
    converted = await asyncio.create_subprocess_exec(
        "qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(qemu.firmware_vars), str(layer)
    )
    assert await converted.wait() == 0
    size = qemu.firmware_vars.stat().st_size
    variables = disk_of("efivars", LayerFile("vars", layer, writable=True), size_bytes=size)
    machine = Machine(name="uefi", memory_mib=128, firmware=Firmware.UEFI, disks=(variables.disk,))
    async with await launch(qemu, directory, machine, [variables], user=find_user()) as running:
        # The firmware tells of its boot on the serial port, when it finds nothing to boot.
        await running.console_says("BdsDxe")


# -- block nodes -------------------------------------------------------------------------------------------------------


async def test_two_disks_of_one_image_are_rearranged_while_the_guest_runs(qemu: Qemu, directory: Path) -> None:
    base = make_layer(directory, "base")
    tops = [make_layer(directory, f"top{n}", base="base") for n in range(2)]
    chains = [disk_of(f"disk{n}", top, base) for n, top in enumerate(tops)]
    machine = Machine(name="disks", memory_mib=64, disks=tuple(chain.disk for chain in chains))
    overlays = [make_layer(directory, f"over{n}", base=f"top{n}") for n in range(2)]
    flat = make_layer(directory, "flat")
    async with await launch(qemu, directory, machine, chains) as running:
        qmp = running.qmp
        assert set(await qmp.query_block_nodes()) == {f"{k}-{n}" for n in ("base", "top0", "top1") for k in "fq"}

        for overlay in overlays:
            await qmp.add_layer_node(overlay)
        await qmp.stop()
        await qmp.snapshot_transaction([("top0", "over0"), ("top1", "over1")])
        await qmp.cont()
        nodes = await qmp.query_block_nodes()
        assert [nodes[name]["ro"] for name in ("q-top0", "q-over0", "q-top1", "q-over1")] == [True, False, True, False]

        for top in tops:
            await qmp.seal_layer(top)
        assert writable_descriptors(running.process.pid, tops[0].path) == 0
        assert writable_descriptors(running.process.pid, overlays[0].path) > 0

        await qmp.reopen_backing(overlays[0], disk_of("disk0", read_only(flat)))
        await qmp.del_nodes(["top0", "base"])
        names = set(await qmp.query_block_nodes())
        assert {"q-flat", "q-base"} <= names  # the other disk stands on the base still
        assert "q-top0" not in names
        assert locked_ranges(tops[0].path) == 0

        await qmp.block_resize("over1", 128 << 20)
        assert (await qmp.query_block_nodes())["q-over1"]["image"]["virtual-size"] == 128 << 20


async def test_an_immutable_layer_is_shared_and_one_that_is_written_is_not(qemu: Qemu, directory: Path) -> None:
    base = make_layer(directory, "base")
    first, second = (directory / name for name in ("a", "b"))
    for place in (first, second):
        place.mkdir()
    machine = Machine(name="locks", memory_mib=64, disks=(disk_of("disk0", base).disk,))
    async with await launch(qemu, first, machine, [disk_of("disk0", base)]) as source:
        clone = disk_of("disk0", make_layer(directory, "clone", base="base"), base)
        with pytest.raises(QemuError, match='Failed to get shared "write" lock'):
            await launch(qemu, second, machine, [clone])
        overlay = make_layer(directory, "over", base="base")
        await source.qmp.add_layer_node(overlay)
        # Nothing else is needed before a clone may open the base: not even the source's `cont`.
        await source.qmp.stop()
        await source.qmp.snapshot_transaction([("base", "over")])
        async with await launch(qemu, second, machine, [clone]) as running:
            assert (await running.qmp.status()).running


async def test_an_overlay_takes_the_writes_of_a_guest_that_goes_on(guest: Running) -> None:
    overlay = make_layer(guest.log_dir, "over", base="top")
    top = LayerFile("top", guest.log_dir / "top.qcow2", writable=True)
    async with guest.shell() as shell:
        await shell.run("echo before | dd of=/dev/vda bs=512 count=1 seek=1 conv=sync,fsync 2>/dev/null")
        size = top.path.stat().st_size
        await guest.qmp.add_layer_node(overlay)
        await guest.qmp.stop()
        await guest.qmp.snapshot_transaction([("top", "over")])
        await guest.qmp.cont()
        await guest.qmp.seal_layer(top)
        await shell.run("dd if=/dev/zero of=/dev/vda bs=1M seek=8 count=8 conv=fsync 2>/dev/null")
        assert await shell.run("dd if=/dev/vda bs=512 skip=1 count=1 2>/dev/null | head -n 1") == "before"
    assert top.path.stat().st_size == size
    assert overlay.path.stat().st_blocks * 512 > 8 << 20


# -- hot-plug ----------------------------------------------------------------------------------------------------------


async def test_a_nic_and_a_disk_come_and_go(guest: Running) -> None:
    extra = make_layer(guest.log_dir, "extra")
    chain = disk_of("disk2", extra)
    async with guest.shell() as shell:
        await guest.qmp.add_chain(chain)
        await guest.qmp.hotplug_disk(chain)
        await guest.qmp.hotplug_nic(Nic(id="net3", mac="52:54:00:aa:bb:cc"), None)
        await shell.run("until grep -q vdb /proc/partitions; do usleep 50000; done")
        await shell.run("until cat /sys/class/net/*/address | grep -q aa:bb:cc; do usleep 50000; done")
        await shell.run("echo there | dd of=/dev/vdb conv=fsync 2>/dev/null")

        await guest.qmp.unplug_nic("net3", WAIT_S)
        await guest.qmp.unplug_device("disk2", WAIT_S)
        await guest.qmp.del_node("extra")
        assert not await shell.run("cat /sys/class/net/*/address | grep aa:bb:cc || true")
    assert locked_ranges(extra.path) == 0
    assert writable_descriptors(guest.process.pid, extra.path) == 0


async def test_a_guest_that_does_not_answer_is_not_waited_for(qemu: Qemu, directory: Path) -> None:
    machine = Machine(name="deaf", memory_mib=64, nics=(Nic(id="net0", network="user"),))
    async with await launch(qemu, directory, machine) as running:
        with pytest.raises(DeadlineError, match="did not give net0 back"):
            await running.qmp.unplug_nic("net0", 0.2)


# -- forks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("display", [Display.NONE, Display.VIRTIO])
async def test_a_fork_takes_the_state_of_a_source_that_was_changed_since_its_launch(
    display: Display, qemu: Qemu, native: NativePaths, directory: Path
) -> None:
    """Every device of the source, hot-plugged ones too, finds its place in the clone; the clone's QEMU has nothing but
    what it was handed."""
    user = find_user()
    nics = (Nic(id="net0", network="user"), Nic(id="net1", model=NicModel.E1000E, network="user"))
    base = make_layer(directory, "base")
    machine = Machine(
        name="source", memory_mib=128, vcpus=2, nics=nics, display=display, disks=(disk_of("disk0", base).disk,)
    )
    async with await launch(qemu, directory, machine, [disk_of("disk0", base)], native=native, user=user) as source:
        added = Nic(id="net2", model=NicModel.VMXNET3, network="user")
        extra = make_layer(directory, "extra")
        await source.qmp.add_chain(disk_of("disk1", extra))
        await source.qmp.hotplug_disk(disk_of("disk1", extra))
        await source.qmp.hotplug_nic(added, None)

        for name in ("base", "extra"):
            await source.qmp.add_layer_node(make_layer(directory, f"{name}-over", base=name))
        overlays = [make_layer(directory, f"{name}-clone", base=name) for name in ("base", "extra")]
        chains = [disk_of("disk0", overlays[0], base), disk_of("disk1", overlays[1], extra)]
        described = machine.changed(
            name="clone",
            uuid="c0ffee00-0000-4000-8000-000000000000",
            nics=[*(nic.model_dump() for nic in nics), added.model_dump()],
            disks=[chain.disk.model_dump() for chain in chains],
        )
        state = os.memfd_create("state")
        await source.qmp.stop()
        await source.qmp.snapshot_transaction([("base", "base-over"), ("extra", "extra-over")])
        await source.qmp.migrate_to_fd(state, with_ram=False, timeout_s=WAIT_S)
        clone = await fork(qemu, source, directory / "clone", described, chains, native)
        picture = await source.qmp.screendump() if display is not Display.NONE else b""
        await source.qmp.cont()
        async with clone:
            os.lseek(state, 0, os.SEEK_SET)
            await clone.qmp.incoming(state, timeout_s=WAIT_S)
            os.close(state)
            if display is not Display.NONE:
                assert await clone.qmp.screendump() == picture
            await clone.qmp.cont()
            assert (await clone.qmp.status()).running
            assert await clone.qmp.uuid() == described.uuid
            assert Path(f"/proc/{clone.process.pid}/comm").read_text() == "ramet:clone\n"
            assert writable_descriptors(clone.process.pid, base.path) == 0
            # The source goes first: the clone owes it nothing.
            await source.process.end()
            assert (await clone.qmp.status()).running


async def fork(
    qemu: Qemu,
    source: Running,
    directory: Path,
    machine: Machine,
    chains: list[DiskChain],
    native: NativePaths,
) -> Running:
    directory.mkdir()
    run_dir = RunDir(directory / "run")
    user = find_user()
    run_dir.create(user.uid if user else None, user.gid if user else None)
    nics = [NicBackend(nic.id, None) for nic in machine.nics]
    plan = build_plan(
        machine,
        qemu,
        Accelerator.TCG,
        run_dir,
        directory,
        chains,
        nics,
        native,
        forked=True,
        incoming="defer",
        paused=True,
    )
    with plan, plan.stdio() as stdio, ForkClient.connect(source.run_dir.fork, WAIT_S) as client:
        request = ForkRequest(plan.argv, plan.env, (*stdio, *plan.table.fds), plan.name)
        reply = await asyncio.to_thread(client.fork, request)
    process = QemuProcess.from_fork(reply.pid, reply.pidfd, log_dir=directory)
    return await connect(process, run_dir, directory, machine)


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_a_process_is_adopted_by_its_record_and_speaks_for_itself(qemu: Qemu, directory: Path) -> None:
    machine = Machine(name="orphan", memory_mib=64)
    running = await launch(qemu, directory, machine, paused=True)
    record = running.process.record(Accelerator.TCG, qemu.version_text, qemu.build_id, launched=True)
    await running.qmp.close()
    running.process.close()  # as a daemon that is killed

    process = QemuProcess.adopt(record, log_dir=directory)
    assert process is not None
    async with await connect(process, running.run_dir, directory, machine) as adopted:
        assert await adopted.qmp.uuid() == machine.uuid
        assert (await adopted.qmp.status()).status == "prelaunch"
    assert QemuProcess.adopt(record) is None


async def test_a_death_ends_the_session_and_is_explained(qemu: Qemu, directory: Path) -> None:
    async with await launch(qemu, directory, Machine(name="victim", memory_mib=64)) as running:
        with running.qmp.events() as events:
            running.process.kill()
            assert await events.next(WAIT_S) is None
        await asyncio.wait_for(running.qmp.wait_lost(), WAIT_S)
        await running.process.wait_exit(WAIT_S)
    assert read_ending(directory) is None


async def test_a_qemu_that_cannot_start_says_why(qemu: Qemu, directory: Path) -> None:
    damaged = directory / "damaged.qcow2"
    damaged.write_bytes(b"this is no image")
    chain = disk_of("disk0", LayerFile("damaged", damaged, writable=True))
    with pytest.raises(QemuError, match=r"cannot be reached: .*qcow2"):
        await launch(qemu, directory, Machine(name="broken", memory_mib=64, disks=(chain.disk,)), [chain])


async def test_a_restart_from_inside_is_told_from_a_power_off(qemu: Qemu, kernel: KernelBoot, directory: Path) -> None:
    """Booted from a kernel of ours, a guest that restarts ends its QEMU; the log says why, though nobody listened."""
    machine = Machine(name="restart", memory_mib=128, kernel=kernel)
    for command, wants_restart in (("reboot -f", True), ("poweroff -f", False)):
        async with await launch(qemu, directory, machine) as running:
            (directory / "console.log").write_text("")
            await running.console_says("ready")
            await running.qmp.close()
            reader, writer = await asyncio.open_unix_connection(running.run_dir.console)
            writer.write(f"{command}\n".encode())
            await running.process.wait_exit(BOOT_S)
            writer.close()
            del reader
        ending = read_ending(directory)
        assert ending is not None
        assert ending.by_guest
        assert ending.wants_restart is wants_restart


async def test_a_state_that_is_not_one_is_refused_and_explained(qemu: Qemu, directory: Path) -> None:
    machine = Machine(name="nonsense", memory_mib=64)
    async with await launch(qemu, directory, machine, incoming="defer", paused=True) as running:
        state = os.memfd_create("state")
        os.write(state, b"x" * 100_000)
        os.lseek(state, 0, os.SEEK_SET)
        with pytest.raises(QemuError):
            await running.qmp.incoming(state, timeout_s=WAIT_S)
        os.close(state)
        if not qemu.incoming_failure_is_survived:
            await running.process.wait_exit(WAIT_S)
            assert "migration stream" in running.process.exit_reason()


async def test_a_vm_is_suspended_with_its_memory_and_resumed(qemu: Qemu, kernel: KernelBoot, directory: Path) -> None:
    machine = Machine(name="nap", memory_mib=128, kernel=kernel)
    with tempfile.TemporaryFile(dir=directory) as state:
        async with await launch(qemu, directory, machine) as running:
            await running.console_says("ready")
            async with running.shell() as shell:
                await shell.run("echo kept > /remember")
            await running.qmp.stop()
            await running.qmp.migrate_to_fd(state.fileno(), with_ram=True, timeout_s=BOOT_S)
        state.seek(0)
        async with await launch(qemu, directory, machine, incoming="defer", paused=True) as running:
            await running.qmp.configure_migration(ignore_ram=False)
            await running.qmp.incoming(state.fileno(), timeout_s=BOOT_S)
            await running.qmp.cont()
            async with running.shell() as shell:
                assert await shell.run("cat /remember") == "kept"


async def test_the_verdict_on_this_hosts_kvm(qemu: Qemu, directory: Path) -> None:
    """Whatever it is, it is given in time, with its reason, and nothing is left running."""
    async with asyncio.timeout(30):
        report = await probe(qemu, None, directory / "cache", user=find_user())
    assert report.reason
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not any("kvm-probe" in Path(f"/proc/{pid}/cmdline").read_text() for pid in children)


async def test_every_socket_is_where_its_user_looks_for_it(guest: Running) -> None:
    for path in (guest.run_dir.stun, guest.run_dir.agent, guest.run_dir.rpc):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
