"""What a VM's properties say, for every kind of hardware and every state."""

from __future__ import annotations

from typing import Any

from ramet.host.service import Host
from ramet.model.machine import Disk, Display, Firmware, Nic, NicModel, VmState
from ramet.model.units import MIB
from ramet.vsphere import ids
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.types import Support, vim
from tests.vsphere.kit import record_vm, seen

dev = vim.vm.device


def of_kind(devices: list[Any], kind: Any) -> list[Any]:
    return [one for one in devices if isinstance(one, kind)]


async def test_every_card_has_its_kind_its_network_and_its_wire(host: Host, world: World) -> None:
    cards = (
        Nic(id="net0", model=NicModel.E1000E, network="user"),
        Nic(id="net2", model=NicModel.VMXNET3, network=None),
        Nic(id="net3", model=NicModel.VIRTIO, network="gone", connected=False),
    )
    mo = await seen(world, await record_vm(host, "web", nics=cards))
    found = of_kind(await read_now(mo, "config.hardware.device"), dev.VirtualEthernetCard)
    assert [type(one) for one in found] == [dev.VirtualE1000e, dev.VirtualVmxnet3, dev.VirtualVmxnet3]
    assert [one.key for one in found] == [4000, 4002, 4003]
    assert [one.macAddress for one in found] == [nic.mac for nic in cards]
    assert [one.backing.deviceName for one in found] == ["user", "", "gone"]
    assert [one.backing.network and one.backing.network._moId for one in found] == [
        ids.network_moid("user"), None, None,
    ]  # fmt: skip
    assert [(one.connectable.connected, one.connectable.startConnected) for one in found] == [
        (False, True), (False, True), (False, False),
    ]  # fmt: skip
    await host.floor.machines[ids.vm_id(mo.moid) or ""].change(state=VmState.OFF)
    assert await read_now(mo, "config.hardware.device[4002].macAddress") == cards[1].mac
    assert await read_now(mo, "config.hardware.device[1].macAddress") is None


async def test_a_disk_shows_the_layers_below_it(host: Host, world: World) -> None:
    layers = host.floor.rooms.layers
    base = layers.create_empty(64 * MIB)
    middle = layers.create_overlay(base.id)
    top = layers.create_overlay(middle.id)
    disks = (
        Disk(id="disk0", layer=top.id, size_bytes=64 * MIB),
        Disk(id="efivars", layer=layers.create_empty(MIB).id, size_bytes=MIB),
    )
    mo = await seen(world, await record_vm(host, "web", disks=disks, firmware=Firmware.UEFI))
    config = await read_now(mo, "config")
    (disk,) = of_kind(config.hardware.device, dev.VirtualDisk)
    backing = disk.backing
    chain = []
    while backing is not None:
        chain.append(backing.fileName)
        backing = backing.parent
    assert chain == [f"[ramet] layers/{layer.id}.qcow2" for layer in (top, middle, base)]
    assert len({disk.backing.uuid, disk.backing.parent.uuid}) == 2
    assert (config.firmware, disk.capacityInBytes) == ("efi", 64 * MIB)
    layout = await read_now(mo, "layoutEx")
    names = {one.key: one.name for one in layout.file}
    (shown,) = layout.disk
    assert [names[unit.fileKey[0]] for unit in shown.chain] == list(reversed(chain))
    assert [one.type for one in layout.file].count("nvram") == 1
    storage = await read_now(mo, "storage")
    usage = storage.perDatastoreUsage[0]
    assert usage.committed >= usage.unshared > 0
    assert usage.uncommitted > 0


async def test_many_disks_are_on_several_controllers(host: Host, world: World) -> None:
    layers = host.floor.rooms.layers
    disks = tuple(Disk(id=f"disk{n}", layer=layers.create_empty(MIB).id, size_bytes=MIB) for n in range(16))
    mo = await seen(
        world, await record_vm(host, "big", disks=disks, cdroms=("/a.iso", f"{host.settings.state_dir}/b.iso"))
    )
    devices = await read_now(mo, "config.hardware.device")
    found = of_kind(devices, dev.VirtualDisk)
    places = {(one.controllerKey, one.unitNumber) for one in found}
    assert len(places) == 16
    assert all(unit != 7 for _, unit in places)
    controllers = {one.key: one for one in of_kind(devices, dev.VirtualController)}
    for one in devices:
        if one.controllerKey is not None:
            assert one.key in controllers[one.controllerKey].device
    assert len({one.key for one in devices}) == len(devices)
    assert [one.backing.fileName for one in of_kind(devices, dev.VirtualCdrom)] == ["[] /a.iso", "[ramet] b.iso"]


async def test_a_video_card_is_shown_where_there_is_one(host: Host, world: World) -> None:
    for display in Display:
        mo = await seen(world, await record_vm(host, f"with-{display.value}", display=display))
        devices = await read_now(mo, "config.hardware.device")
        assert bool(of_kind(devices, dev.VirtualVideoCard)) is (display is not Display.NONE)
        for kind in (dev.VirtualKeyboard, dev.VirtualPointingDevice, dev.VirtualSerialPort):
            assert len(of_kind(devices, kind)) == 1


STATES = (
    (VmState.OFF, "poweredOff", False),
    (VmState.STARTING, "poweredOff", False),
    (VmState.RUNNING, "poweredOn", False),
    (VmState.PAUSED, "poweredOn", False),
    (VmState.FROZEN, "poweredOn", True),
    (VmState.STOPPING, "poweredOn", False),
    (VmState.SUSPENDED, "suspended", False),
    (VmState.OFF, "poweredOff", False),
)


async def test_states_have_their_words(host: Host, world: World) -> None:
    vm = await record_vm(host, "web")
    mo = await seen(world, vm)
    for state, power, frozen in STATES:
        reason = "disk full" if state is VmState.PAUSED else None
        await host.floor.machines[vm.id].change(state=state, pause_reason=reason)
        runtime = await read_now(mo, "runtime")
        assert (runtime.powerState, runtime.instantCloneFrozen) == (power, frozen)
        for path in ("runtime", "summary.runtime"):
            assert await read_now(mo, f"{path}.powerState") == power
            assert await read_now(mo, f"{path}.instantCloneFrozen") is frozen
        assert (runtime.question is not None) is (state is VmState.PAUSED)
        assert await read_now(mo, "overallStatus") == ("yellow" if reason else "green")


async def test_what_clients_said_is_shown_and_kept(host: Host, world: World) -> None:
    vm = await record_vm(host, "web", extra_config={"guestinfo.b": "2", "guestinfo.a": "1"}, image="debian")
    mo = await seen(world, vm)
    config = await read_now(mo, "config")
    assert [(one.key, one.value) for one in config.extraConfig] == [("guestinfo.a", "1"), ("guestinfo.b", "2")]
    assert (config.template, config.guestId, config.instanceUuid) == (False, "debian12_64Guest", ids.instance_uuid(vm))
    assert config.changeVersion == await read_now(mo, "config.changeVersion")
    other = "11111111-2222-3333-4444-555555555555"
    await world.part(Places).change(
        vm.id, template=True, annotation="mine", guest_id="ubuntu64Guest", instance_uuid=other
    )
    after = await read_now(mo, "config")
    assert (after.template, after.guestId, after.annotation, after.instanceUuid) == (
        True,
        "ubuntu64Guest",
        "mine",
        other,
    )
    assert after.changeVersion != config.changeVersion
    summary = await read_now(mo, "summary.config")
    assert (summary.template, summary.guestFullName, summary.annotation) == (True, "Ubuntu Linux (64-bit)", "mine")
    assert await read_now(mo, "resourcePool") is None


async def test_limits_are_in_the_units_of_the_api(host: Host, world: World) -> None:
    vm = await record_vm(host, "web", cpu_limit_percent=150, vcpus=2, memory_mib=256, memory_target_mib=128)
    mo = await seen(world, vm)
    resources = await read_now(mo, "resourceConfig")
    mhz = (await read_now(world.find(ids.HOST), "summary")).hardware.cpuMhz
    assert resources.cpuAllocation.limit == 150 * mhz // 100
    assert resources.memoryAllocation.limit == 128
    assert await read_now(mo, "summary.quickStats.balloonedMemory") == 0  # it is off


async def test_a_short_cut_says_what_the_whole_says(host: Host, world: World) -> None:
    """Paths with functions of their own, against a walk through the object that they are part of."""
    mo = await seen(world, await record_vm(host, "web", image="debian"))
    paths = [path for path in mo.getters if "." in path]
    assert len(paths) > 40
    for path in paths:
        root, *rest = path.split(".")
        value = await read_now(mo, root)
        for name in rest:
            value = None if value is None else getattr(value, name)
        found = await read_now(mo, path)
        alike = str(found) == str(value) if isinstance(value, list | Support.DataObject) else found == value
        assert alike, f"{path}: {found!r}, {value!r}"
