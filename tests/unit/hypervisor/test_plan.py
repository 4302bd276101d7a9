"""Command lines and descriptors of births."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.errors import UnsupportedError, UsageError
from ramet.hypervisor.arguments import pci
from ramet.hypervisor.plan import LaunchPlan, NicBackend, RunDir, build_plan
from ramet.model.machine import Accelerator, Disk, Display, Firmware, KernelBoot, Machine, Nic, NicModel
from tests.unit.hypervisor.plan_kit import (
    QEMU,
    chain,
    json_options,
    make_plan,
    open_fds,
    option_of,
    options_of,
    with_version,
)

MIB = 1 << 20


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    nic_ids = draw(st.lists(st.integers(0, 7), unique=True, max_size=8))
    disk_ids = draw(st.lists(st.integers(0, 15), unique=True, max_size=15))
    firmware = draw(st.sampled_from(Firmware))
    disks = [Disk(id=f"disk{n}", layer=f"layer{n}", size_bytes=MIB) for n in disk_ids]
    if firmware is Firmware.UEFI:
        disks.append(Disk(id="efivars", layer="vars", size_bytes=540672))
    return Machine(
        name=draw(st.sampled_from(["web", "a-name-of-some-length", "x.y"])),
        memory_mib=draw(st.sampled_from([64, 512, 4096])),
        vcpus=draw(st.integers(1, 8)),
        firmware=firmware,
        kernel=draw(st.sampled_from([None, KernelBoot(kernel="/dev/null", append="quiet, please")])),
        disks=tuple(disks),
        nics=tuple(
            Nic(id=f"net{n}", model=draw(st.sampled_from(NicModel)), network=draw(st.sampled_from([None, "user"])))
            for n in nic_ids
        ),
        display=draw(st.sampled_from(Display)),
        cdroms=draw(st.sampled_from([(), ("/dev/null",), ("/dev/null", "/dev/zero")])),
    )


HOST_SIDE = {"-add-fd", "-incoming", "-kernel", "-initrd", "-append", "-sandbox", "-netdev", "-vnc"}


def guest_visible(plan: LaunchPlan) -> list[str]:
    """The command line without what only the host sees: descriptors, sockets, paths."""
    seen = []
    argv = list(plan.argv[1:])
    while argv:
        option = argv.pop(0)
        if option == "-S":
            continue
        if option.startswith("-") and argv and not argv[0].startswith("-"):
            value = argv.pop(0)
            if option not in HOST_SIDE:
                seen.append(f"{option} {_without_numbers(value)}")
        else:
            seen.append(option)
    return seen


def _without_numbers(value: str) -> str:
    return re.sub(r"\bfd=\d+|/dev/fdset/\d+|/proc/self/fd/\d+", "N", value)


@given(machine=machines())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_fork_has_the_hardware_of_its_source(machine: Machine, tmp_path: Path) -> None:
    with (
        make_plan(tmp_path, machine) as launched,
        make_plan(tmp_path, machine, forked=True, incoming="defer", paused=True) as forked,
    ):
        assert guest_visible(launched) == guest_visible(forked)


@given(machine=machines())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_device_has_a_place_and_an_id_of_its_own(machine: Machine, tmp_path: Path) -> None:
    with make_plan(tmp_path, machine) as plan:
        devices = json_options(plan, "-device")
    ids = [device["id"] for device in devices]
    places = [(device["bus"], device["addr"]) for device in devices if "addr" in device]
    assert len(set(ids)) == len(ids)
    assert len(set(places)) == len(places)
    assert {f"net{nic.id[3:]}" for nic in machine.nics} <= set(ids)
    assert {disk.id for disk in machine.disks if not disk.is_efivars} <= set(ids)


@given(machine=machines())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_place_of_a_device_depends_on_its_id_alone(machine: Machine, tmp_path: Path) -> None:
    """A clone of a VM that had a NIC or a disk plugged in since its launch has the same bus."""
    with make_plan(tmp_path, machine) as plan:
        places = {device["id"]: (device.get("bus"), device.get("addr")) for device in json_options(plan, "-device")}
    for nic in machine.nics:
        slot = pci.nic_slot(nic.index)
        assert places[nic.id] == (slot["bus"], slot["addr"])
    nics = max([pci.HOTPLUG_NICS, *(nic.index + 1 for nic in machine.nics)])
    disks = max([pci.HOTPLUG_DISKS, *(disk.index + 1 for disk in machine.disks if not disk.is_efivars)])
    wanted = [f"port-net{n}" for n in range(nics)] + [f"port-disk{n}" for n in range(disks)]
    assert {device for device in places if device.startswith("port-")} == set(wanted)


@given(machine=machines())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ports_are_found_in_the_order_of_what_is_behind_them(machine: Machine, tmp_path: Path) -> None:
    """Guests name disks and NICs in the order in which they find them; function 0 is what they look for first."""
    with make_plan(tmp_path, machine) as plan:
        ports = [device for device in json_options(plan, "-device") if device["driver"] == "pcie-root-port"]
    for kind in ("net", "disk"):
        found = [tuple(int(n, 16) for n in p["addr"].split(".")) for p in ports if p["id"].startswith(f"port-{kind}")]
        assert found == sorted(found)
    functions: dict[str, set[int]] = {}
    for port in ports:
        slot, _, function = port["addr"].partition(".")
        functions.setdefault(slot, set()).add(int(function, 16))
    assert all(found == set(range(len(found))) for found in functions.values())
    assert len({port["chassis"] for port in ports}) == len(ports)


@given(machine=machines(), forked=st.booleans())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_descriptors_are_the_plans_and_are_all_closed(machine: Machine, forked: bool, tmp_path: Path) -> None:
    before = open_fds()
    plan = make_plan(tmp_path, machine, forked=forked)
    mine = set(open_fds()) - set(before)
    assert mine == set(plan.table.fds)
    plan.close()
    assert open_fds() == before


@given(machine=machines())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_number_on_the_command_line_was_handed_over(machine: Machine, tmp_path: Path) -> None:
    for forked in (False, True):
        with make_plan(tmp_path, machine, forked=forked) as plan:
            known = set(range(3, 3 + len(plan.table.fds))) if forked else set(plan.table.fds)
            text = " ".join(plan.argv)
            used = [int(n) for n in re.findall(r'\bfd=(\d+)|/proc/self/fd/(\d+)|"fd":"(\d+)"', text) for n in n if n]
            used += [int(plan.env["VMFORK_RAM_FD"]), int(plan.env["VMFORK_CONTROL_FD"])]
            assert set(used) == known
            sets = {int(n) for n in re.findall(r"/dev/fdset/(\d+)", text)}
            assert sets == {int(n) for n in re.findall(r"\bset=(\d+)", text)}


def test_ram_is_a_shared_named_file_that_nobody_merges_or_dumps(tmp_path: Path) -> None:
    with make_plan(tmp_path, Machine(name="m", memory_mib=512)) as plan:
        (ram,) = (o for o in json_options(plan, "-object") if o["id"] == "ram")
        fd = int(ram["mem-path"].removeprefix("/proc/self/fd/"))
        assert ram["qom-type"] == "memory-backend-file"
        assert (ram["share"], ram["merge"], ram["dump"], ram["size"]) == (True, False, False, 512 * MIB)
        assert os.fstat(fd).st_size == 512 * MIB
        assert plan.env["VMFORK_RAM_FD"] == str(fd)
        board = option_of(plan, "-machine")
    assert "memory-backend=ram" in board
    assert "mem-merge=off" in board
    assert "dump-guest-core=off" in board


def test_the_machine_type_is_versioned_and_kept(tmp_path: Path) -> None:
    with make_plan(tmp_path, Machine(name="m")) as plan:
        assert option_of(plan, "-machine").startswith("pc-q35-7.2,")
    with make_plan(tmp_path, Machine(name="m", machine_type="pc-q35-7.1")) as plan:
        assert option_of(plan, "-machine").startswith("pc-q35-7.1,")
    with pytest.raises(UnsupportedError, match=r"no longer has the machine type pc-q35-5\.0"):
        make_plan(tmp_path, Machine(name="m", machine_type="pc-q35-5.0"))


def test_the_processor_is_named(tmp_path: Path) -> None:
    def cpu(machine: Machine, accelerator: Accelerator, **options: Any) -> str:
        with make_plan(tmp_path, machine, accelerator=accelerator, **options) as plan:
            return option_of(plan, "-cpu")

    emulated = cpu(Machine(name="m"), Accelerator.TCG)
    assert emulated.startswith("qemu64,")
    assert "la57" not in emulated
    assert cpu(Machine(name="m"), Accelerator.KVM) == "host,migratable=on"
    assert cpu(Machine(name="m", cpu_model="Nehalem"), Accelerator.TCG) == "Nehalem"


def test_a_filter_is_set_at_a_launch_and_never_stacked_by_a_fork(tmp_path: Path) -> None:
    with (
        make_plan(tmp_path, Machine(name="m")) as launched,
        make_plan(tmp_path, Machine(name="m"), forked=True) as fork,
    ):
        assert "spawn" not in option_of(launched, "-sandbox")
        assert options_of(fork, "-sandbox") == []


@pytest.mark.parametrize(
    ("options", "loads"), [({}, True), ({"forked": True}, False), ({"incoming": "defer"}, False)], ids=str
)
def test_a_kernel_is_loaded_only_to_boot(options: dict[str, Any], loads: bool, tmp_path: Path) -> None:
    machine = Machine(name="m", kernel=KernelBoot(kernel="/dev/null", initrd="/dev/null", append="a,b=c"))
    with make_plan(tmp_path, machine, **options) as plan:
        assert bool(options_of(plan, "-kernel")) is loads
        assert options_of(plan, "-append") == (["a,b=c"] if loads else [])
        # A reset of either ends QEMU: there is nothing in it to boot again.
        assert "reboot=shutdown" in option_of(plan, "-action")


def test_a_guest_of_its_own_disk_resets_in_place(tmp_path: Path) -> None:
    with make_plan(tmp_path, Machine(name="m")) as plan:
        assert "reboot=reset" in option_of(plan, "-action")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs QEMU as another user")
def test_a_private_kernel_is_handed_over_as_a_copy(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    for mode, copied in ((0o600, True), (0o644, False)):
        kernel.chmod(mode)
        with make_plan(tmp_path, Machine(name="m", kernel=KernelBoot(kernel=str(kernel)))) as plan:
            path = Path(option_of(plan, "-kernel"))
            assert path.read_bytes() == b"kernel"
            assert ("memfd" in os.readlink(path)) is copied


def test_disks_are_nodes_over_descriptors_and_name_no_files(tmp_path: Path) -> None:
    disk = Disk(id="disk0", layer="top", size_bytes=MIB)
    machine = Machine(name="m", disks=(disk,))
    with make_plan(tmp_path, machine, chains=[chain(tmp_path, disk, "middle", "base")]) as plan:
        nodes = {node["node-name"]: node for node in json_options(plan, "-blockdev")}
        (device,) = (d for d in json_options(plan, "-device") if d["id"] == "disk0")
        assert not any(str(tmp_path) in part for part in plan.argv)
    assert list(nodes) == ["f-base", "q-base", "f-middle", "q-middle", "f-top", "q-top"]
    assert [nodes[f"q-{n}"]["backing"] for n in ("base", "middle", "top")] == [None, "q-base", "q-middle"]
    assert [nodes[f"f-{n}"]["read-only"] for n in ("base", "middle", "top")] == [True, True, False]
    assert not any(node["auto-read-only"] for node in nodes.values())
    assert (device["drive"], device["werror"], device["rerror"]) == ("q-top", "stop", "stop")


def test_only_a_writable_layer_is_opened_for_writing(tmp_path: Path) -> None:
    disk = Disk(id="disk0", layer="top", size_bytes=MIB)
    with make_plan(tmp_path, Machine(name="m", disks=(disk,)), chains=[chain(tmp_path, disk, "base")]) as plan:
        modes: dict[str, list[str]] = {}
        for value in options_of(plan, "-add-fd"):
            fields = dict(pair.split("=") for pair in value.split(","))
            flags = Path(f"/proc/self/fdinfo/{fields['fd']}").read_text().split("flags:\t")[1].split()[0]
            modes.setdefault(fields["opaque"], []).append(flags[-1])
    assert modes["f-base"] == ["0"]
    assert modes["f-top"] == ["0"]
    assert modes["f-top:rw"] == ["2"]


def test_two_disks_of_one_image_share_its_layers(tmp_path: Path) -> None:
    disks = [Disk(id=f"disk{n}", layer=f"top{n}", size_bytes=MIB) for n in range(2)]
    chains = [chain(tmp_path, disk, "base") for disk in disks]
    with make_plan(tmp_path, Machine(name="m", disks=tuple(disks)), chains=chains) as plan:
        names = [node["node-name"] for node in json_options(plan, "-blockdev")]
    assert sorted(names) == sorted(set(names))


def test_nics_are_silent_about_themselves(tmp_path: Path) -> None:
    nics = tuple(Nic(id=f"net{n}", model=model) for n, model in enumerate(NicModel))
    with make_plan(tmp_path, Machine(name="m", nics=nics)) as plan:
        devices = [d for d in json_options(plan, "-device") if d["id"].startswith("net")]
        backends = json_options(plan, "-netdev")
        settings = options_of(plan, "-global")
    assert [d["romfile"] for d in devices] == ["", "", ""]
    assert [d["mac"] for d in devices] == [nic.mac for nic in nics]
    assert devices[0]["guest_announce"] is False
    assert all(b["type"] == "tap" and b["vhost"] is False for b in backends)
    assert "migration.announce-rounds=0" in settings


def test_what_a_qemu_lacks_is_refused_with_a_remedy_and_closes_the_taps(tmp_path: Path) -> None:
    before = open_fds()
    bare = type(QEMU)(QEMU.binary, QEMU.version, "x", QEMU.machine_types, frozenset(), is_dynamic=True)
    with pytest.raises(UnsupportedError, match="without vmxnet3"):
        make_plan(tmp_path, Machine(name="m", nics=(Nic(id="net0", model=NicModel.VMXNET3),)), qemu=bare)
    with pytest.raises(UnsupportedError, match="ovmf"):
        make_plan(tmp_path, Machine(name="m", firmware=Firmware.UEFI), qemu=bare)
    with pytest.raises(UnsupportedError, match="user-mode"):
        make_plan(
            tmp_path,
            Machine(name="m", nics=(Nic(id="net0", network="user"),)),
            qemu=type(QEMU)(QEMU.binary, QEMU.version, "x", QEMU.machine_types, QEMU.devices, is_dynamic=True),
        )
    assert open_fds() == before


def test_a_failure_half_way_leaves_nothing_open(tmp_path: Path) -> None:
    before = open_fds()
    disk = Disk(id="disk0", layer="gone", size_bytes=MIB)
    broken = chain(tmp_path, disk, "base")
    (tmp_path / "base.qcow2").unlink()
    with pytest.raises(FileNotFoundError):
        make_plan(tmp_path, Machine(name="m", disks=(disk,), nics=(Nic(id="net0"),)), chains=[broken])
    assert open_fds() == before


def test_a_state_directory_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    before = open_fds()
    run_dir = RunDir(tmp_path / ("d" * 100))
    run_dir.create()
    with pytest.raises(UsageError, match="--state"):
        build_plan(Machine(name="m"), QEMU, Accelerator.TCG, run_dir, tmp_path, (), (), None, forked=False)
    assert open_fds() == before


def test_a_vm_without_the_library_runs_and_cannot_be_forked(tmp_path: Path) -> None:
    with make_plan(tmp_path, Machine(name="m"), native=None) as plan:
        assert "LD_PRELOAD" not in plan.env
        assert not (tmp_path / "r" / "fork").exists()


def test_standard_output_is_a_monitor_that_reports(tmp_path: Path) -> None:
    before = open_fds()
    with make_plan(tmp_path, Machine(name="m")) as plan:
        with plan.stdio() as (stdin, stdout, stderr):
            assert json.loads(os.read(stdin, 1000)) == {"execute": "qmp_capabilities"}
            assert os.get_blocking(stdin)
            os.write(stdout, b"event\n")
            os.write(stderr, b"word\n")
        assert (tmp_path / "events.log").read_bytes() == b"event\n"
        assert (tmp_path / "qemu.log").read_bytes() == b"word\n"
    assert open_fds() == before


def test_a_process_is_named_after_its_vm(tmp_path: Path) -> None:
    with make_plan(tmp_path, Machine(name="a-name-of-some-length")) as plan:
        assert plan.name == "ramet:a-name-of"
        assert f"process={plan.name}" in option_of(plan, "-name")


def test_user_mode_nics_have_no_tap(tmp_path: Path) -> None:
    machine = Machine(name="m", nics=(Nic(id="net0", network="user"),))
    run_dir = RunDir(tmp_path / "r")
    run_dir.create()
    backends = [NicBackend("net0", None)]
    with build_plan(machine, QEMU, Accelerator.TCG, run_dir, tmp_path, (), backends, None, forked=False) as plan:
        (netdev,) = json_options(plan, "-netdev")
    assert netdev["type"] == "user"


@pytest.mark.parametrize("version", [(7, 2, 0), (8, 1, 0), (9, 1, 0), (10, 0, 0)], ids=str)
def test_every_version_gets_a_command_line(version: tuple[int, int, int], tmp_path: Path) -> None:
    with make_plan(tmp_path, Machine(name="m"), qemu=with_version(*version)) as plan:
        assert plan.argv[0] == str(QEMU.binary)


def test_a_machine_shows_its_generation_where_qemu_can(tmp_path: Path) -> None:
    generation = "0e7ff2a0-5d0d-4d3a-9f3a-6d1f4e1f7a11"
    with make_plan(tmp_path, Machine(name="m"), generation=generation) as plan:
        assert f"vmgenid,id=generation,guid={generation}" in options_of(plan, "-device")
    without = dataclasses.replace(QEMU, devices=QEMU.devices - {"vmgenid"})
    with make_plan(tmp_path, Machine(name="m"), generation=generation, qemu=without) as plan:
        assert not [device for device in options_of(plan, "-device") if "vmgenid" in device]
