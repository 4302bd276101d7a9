"""com.vmware.vcenter.VM: list, get, create, clone, instant_clone, delete; and power."""

from __future__ import annotations

from typing import Any

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.properties import value_at
from ramet.vsphere.rest.asking import Ask
from ramet.vsphere.rest.errors import ApiError
from ramet.vsphere.rest.table import Operation
from ramet.vsphere.rest.vm_facts import POWER, vm_info
from ramet.vsphere.rest.vm_specs import clone_spec, config_spec, instant_clone_spec
from ramet.vsphere.rest.vm_structs import (
    CloneSpec,
    CreateSpec,
    FilterSpec,
    InstantCloneSpec,
    PowerInfo,
    Summary,
    VmInfo,
)
from ramet.vsphere.types import vim

_LISTED = ("name", "runtime.powerState", "config.template", "summary.config.numCpu", "summary.config.memorySizeMB")


def vm_of(ask: Ask, vm: str) -> Mo:
    return ask.find(vm, vim.VirtualMachine)


async def list_vms(ask: Ask, filter: FilterSpec | None = None) -> list[Summary]:
    wanted = filter or FilterSpec()
    found = []
    async for mo in ask.each(vim.VirtualMachine):
        if wanted.vms is not None and mo.moid not in wanted.vms:
            continue
        if wanted.names is not None and value_at(mo, "name") not in wanted.names:
            continue
        values = await ask.read(mo, *_LISTED)
        summary = _summary(mo, values)
        is_wanted = wanted.power_states is None or summary.power_state in wanted.power_states
        if is_wanted and not values.get("config.template") and await _is_there(ask, mo, wanted):
            found.append(summary)
    return sorted(found, key=lambda one: one.name)


def _summary(mo: Mo, values: dict[str, Any]) -> Summary:
    return Summary(
        vm=mo.moid,
        name=values.get("name", ""),
        power_state=POWER[str(values.get("runtime.powerState", "poweredOff"))],
        cpu_count=values.get("summary.config.numCpu"),
        memory_size_MiB=values.get("summary.config.memorySizeMB"),
    )


async def _is_there(ask: Ask, mo: Mo, wanted: FilterSpec) -> bool:
    """In one of the folders, on one of the hosts, and so on, that were asked for."""
    for above in (wanted.folders, wanted.datacenters):
        if above is not None and not ask.is_under(mo, above):
            return False
    if wanted.hosts is None and wanted.clusters is None and wanted.resource_pools is None:
        return True
    values = await ask.read(mo, "runtime.host", "resourcePool")
    for asked, path in ((wanted.hosts, "runtime.host"), (wanted.resource_pools, "resourcePool")):
        if asked is not None and getattr(values.get(path), "_moId", None) not in asked:
            return False
    host = values.get("runtime.host")
    return wanted.clusters is None or (host is not None and ask.is_under(ask.same(host), wanted.clusters))


async def get_vm(ask: Ask, vm: str) -> VmInfo:
    return await vm_info(ask, vm_of(ask, vm))


async def create_vm(ask: Ask, spec: CreateSpec) -> str:
    placement = spec.placement
    folder = _folder(ask, placement.folder if placement else None)
    pool = ask.reference(vim.ResourcePool, placement.resource_pool if placement else None) or _first_pool(ask)
    host = ask.reference(vim.HostSystem, placement.host if placement else None)
    made = await ask.do(folder, "CreateVM_Task", config=config_spec(ask, spec), pool=pool, host=host)
    return str(made._moId)


def _folder(ask: Ask, moid: str | None) -> Mo:
    """What was asked for, or the first datacenter's own folder for VMs."""
    if moid is not None:
        return ask.find(moid, vim.Folder)
    datacenter = next(iter(ask.all_of(vim.Datacenter)), None)
    if datacenter is None:
        raise ApiError("not_found", "There is no datacenter.")
    return ask.same(value_at(datacenter, "vmFolder"))


def _first_pool(ask: Ask) -> Any:
    return next((mo.ref for mo in ask.all_of(vim.ResourcePool)), None)


async def instant_clone(ask: Ask, spec: InstantCloneSpec) -> str:
    source = vm_of(ask, spec.source)
    config = (await ask.read(source, "config"))["config"]
    made = await ask.do(source, "InstantClone_Task", spec=instant_clone_spec(ask, config, spec))
    return str(made._moId)


async def clone(ask: Ask, spec: CloneSpec) -> str:
    source = vm_of(ask, spec.source)
    folder = await _clone_folder(ask, source, spec)
    made = await ask.do(source, "CloneVM_Task", folder=folder, name=spec.name, spec=clone_spec(ask, spec))
    return str(made._moId)


async def _clone_folder(ask: Ask, source: Mo, spec: CloneSpec) -> Any:
    if spec.placement is not None and spec.placement.folder is not None:
        return ask.reference(vim.Folder, spec.placement.folder)
    parent = (await ask.read(source, "parent")).get("parent")
    return parent if parent is not None else _folder(ask, None).ref


async def delete_vm(ask: Ask, vm: str) -> None:
    await ask.do(vm_of(ask, vm), "Destroy_Task")


async def unregister_vm(ask: Ask, vm: str) -> None:
    await ask.do(vm_of(ask, vm), "UnregisterVM")


async def get_power(ask: Ask, vm: str) -> PowerInfo:
    state = POWER[str((await ask.read(vm_of(ask, vm), "runtime.powerState"))["runtime.powerState"])]
    return PowerInfo(state=state, clean_power_off=True if state == "POWERED_OFF" else None)


async def start(ask: Ask, vm: str) -> None:
    await _power(ask, vm, "PowerOnVM_Task", "POWERED_ON")


async def stop(ask: Ask, vm: str) -> None:
    await _power(ask, vm, "PowerOffVM_Task", "POWERED_OFF")


async def suspend(ask: Ask, vm: str) -> None:
    await _power(ask, vm, "SuspendVM_Task", "SUSPENDED")


async def reset(ask: Ask, vm: str) -> None:
    await ask.do(vm_of(ask, vm), "ResetVM_Task")


async def _power(ask: Ask, vm: str, method: str, wanted: str) -> None:
    mo = vm_of(ask, vm)
    if POWER[str((await ask.read(mo, "runtime.powerState"))["runtime.powerState"])] == wanted:
        said = wanted.lower().replace("_", " ")
        raise ApiError("already_in_desired_state", f"Virtual machine is already {said}.")
    await ask.do(mo, method)


_VM, _POWER = "com.vmware.vcenter.VM", "com.vmware.vcenter.vm.power"
OPERATIONS = (
    Operation.of(_VM, "list", "GET", "/vcenter/vm", list_vms),
    Operation.of(_VM, "get", "GET", "/vcenter/vm/{vm}", get_vm),
    Operation.of(_VM, "create", "POST", "/vcenter/vm", create_vm),
    Operation.of(_VM, "clone", "POST", "/vcenter/vm?action=clone", clone),
    Operation.of(_VM, "instant_clone", "POST", "/vcenter/vm?action=instant-clone", instant_clone),
    Operation.of(_VM, "delete", "DELETE", "/vcenter/vm/{vm}", delete_vm),
    Operation.of(_VM, "unregister", "POST", "/vcenter/vm/{vm}?action=unregister", unregister_vm),
    Operation.of(_POWER, "get", "GET", "/vcenter/vm/{vm}/power", get_power),
    Operation.of(_POWER, "start", "POST", "/vcenter/vm/{vm}/power?action=start", start),
    Operation.of(_POWER, "stop", "POST", "/vcenter/vm/{vm}/power?action=stop", stop),
    Operation.of(_POWER, "suspend", "POST", "/vcenter/vm/{vm}/power?action=suspend", suspend),
    Operation.of(_POWER, "reset", "POST", "/vcenter/vm/{vm}/power?action=reset", reset),
)
