"""com.vmware.vcenter.vm.guest: identity, networking, power and processes, as the agent tells them; and tools."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.rest.asking import Ask
from ramet.vsphere.rest.errors import ApiError
from ramet.vsphere.rest.structs import Map, Struct
from ramet.vsphere.rest.table import Operation
from ramet.vsphere.rest.vm import vm_of
from ramet.vsphere.rest.vm_facts import guest_os
from ramet.vsphere.types import vim

_GUEST = "com.vmware.vcenter.vm.guest"
_FAMILIES = {"linuxGuest": "LINUX", "windowsGuest": "WINDOWS", "netwareGuest": "NETWARE", "solarisGuest": "SOLARIS"}
_STATES = {
    "running": "RUNNING", "shuttingDown": "SHUTTING_DOWN", "resetting": "RESETTING", "standby": "STANDBY",
    "notRunning": "NOT_RUNNING",
}  # fmt: skip
_VERSIONS = {
    "guestToolsNotInstalled": "NOT_INSTALLED", "guestToolsCurrent": "CURRENT", "guestToolsUnmanaged": "UNMANAGED",
    "guestToolsSupportedOld": "SUPPORTED_OLD", "guestToolsSupportedNew": "SUPPORTED_NEW",
}  # fmt: skip
_RUNS = {"guestToolsRunning": "RUNNING", "guestToolsExecutingScripts": "EXECUTING_SCRIPTS"}


class Message(Struct):
    vapi = "com.vmware.vapi.std.localizable_message"
    id: str
    default_message: str
    args: list[str]


class GuestIdentity(Struct):
    vapi = f"{_GUEST}.identity.info"
    name: str
    family: str
    full_name: Message
    host_name: str
    ip_address: str | None = None


class DnsNames(Struct):
    vapi = f"{_GUEST}.dns_assigned_values"
    host_name: str
    domain_name: str


class DnsServers(Struct):
    vapi = f"{_GUEST}.dns_config_info"
    ip_addresses: list[str]
    search_domains: list[str]


class Networking(Struct):
    vapi = f"{_GUEST}.networking.info"
    dns_values: DnsNames | None = None
    dns: DnsServers | None = None


class Address(Struct):
    vapi = f"{_GUEST}.networking.interfaces.ip_address_info"
    ip_address: str
    prefix_length: int
    origin: str | None = None
    state: str


class Addresses(Struct):
    vapi = f"{_GUEST}.networking.interfaces.ip_config_info"
    ip_addresses: list[Address]


class Interface(Struct):
    vapi = f"{_GUEST}.networking.interfaces.info"
    mac_address: str | None = None
    ip: Addresses | None = None
    nic: str | None = None


class Route(Struct):
    vapi = f"{_GUEST}.networking.routes.info"
    network: str
    prefix_length: int
    gateway_address: str | None = None
    interface_index: int | None = None


class GuestPower(Struct):
    vapi = f"{_GUEST}.power.info"
    state: str
    operations_ready: bool


class Tools(Struct):
    vapi = "com.vmware.vcenter.vm.tools.info"
    auto_update_supported: bool
    install_attempt_count: int | None = None
    version_number: int | None = None
    version: str | None = None
    upgrade_policy: str
    version_status: str | None = None
    install_type: str | None = None
    run_state: str


class Credentials(Struct):
    vapi = f"{_GUEST}.credentials"
    interactive_session: bool = False
    type: Literal["USERNAME_PASSWORD", "SAML_BEARER_TOKEN"]
    user_name: str | None = None
    password: str | None = None
    saml_token: str | None = None


class ProcessCreate(Struct):
    vapi = f"{_GUEST}.processes.create_spec"
    path: str
    arguments: str | None = None
    working_directory: str | None = None
    environment_variables: Map[str] | None = None
    start_minimized: bool | None = None


class ProcessSummary(Struct):
    vapi = f"{_GUEST}.processes.summary"
    name: str
    pid: int
    owner: str
    command: str
    started: datetime


class ProcessInfo(Struct):
    vapi = f"{_GUEST}.processes.info"
    name: str
    owner: str
    command: str
    started: datetime
    finished: datetime | None = None
    exit_code: int | None = None


async def _guest(ask: Ask, vm: str) -> Any:
    """What the agent said; service_unavailable when none answers."""
    guest = (await ask.read(vm_of(ask, vm), "guest")).get("guest")
    if guest is None or guest.toolsRunningStatus != "guestToolsRunning":
        raise ApiError("service_unavailable", "VMware Tools in the guest are not running: nothing is known of it.")
    return guest


async def get_identity(ask: Ask, vm: str) -> GuestIdentity:
    guest = await _guest(ask, vm)
    name = guest.guestFullName or ""
    return GuestIdentity(
        name=guest_os(guest.guestId),
        family=_FAMILIES.get(guest.guestFamily or "", "OTHER"),
        full_name=Message(id=f"vmsg.guestos.{guest.guestId}.label", default_message=name, args=[]),
        host_name=guest.hostName or "",
        ip_address=guest.ipAddress,
    )


async def get_networking(ask: Ask, vm: str) -> Networking:
    guest = await _guest(ask, vm)
    config = next((stack.dnsConfig for stack in guest.ipStack if stack.dnsConfig is not None), None)
    if config is None:
        return Networking(dns_values=DnsNames(host_name=guest.hostName or "", domain_name=""))
    return Networking(
        dns_values=DnsNames(host_name=config.hostName or "", domain_name=config.domainName or ""),
        dns=DnsServers(ip_addresses=list(config.ipAddress), search_domains=list(config.searchDomain)),
    )


async def list_interfaces(ask: Ask, vm: str) -> list[Interface]:
    return [_interface(nic) for nic in (await _guest(ask, vm)).net]


def _interface(nic: Any) -> Interface:
    key = nic.deviceConfigId
    return Interface(
        mac_address=nic.macAddress,
        ip=Addresses(ip_addresses=[_address(one) for one in nic.ipConfig.ipAddress]) if nic.ipConfig else None,
        nic=str(key) if key is not None and key >= 0 else None,
    )


def _address(one: Any) -> Address:
    return Address(
        ip_address=one.ipAddress,
        prefix_length=one.prefixLength,
        origin=one.origin.upper() if one.origin else None,
        state=(one.state or "preferred").upper(),
    )


async def list_routes(ask: Ask, vm: str) -> list[Route]:
    stacks = (await _guest(ask, vm)).ipStack
    routes = [one for stack in stacks if stack.ipRouteConfig is not None for one in stack.ipRouteConfig.ipRoute]
    return [
        Route(
            network=one.network,
            prefix_length=one.prefixLength,
            gateway_address=one.gateway.ipAddress if one.gateway is not None else None,
            interface_index=int(one.gateway.device) if _is_number(one) else None,
        )
        for one in routes
    ]


def _is_number(route: Any) -> bool:
    return route.gateway is not None and str(route.gateway.device or "").isdigit()


async def get_power(ask: Ask, vm: str) -> GuestPower:
    found = await ask.read(vm_of(ask, vm), "guest.guestState", "guest.guestOperationsReady")
    state = _STATES.get(str(found.get("guest.guestState")), "UNAVAILABLE")
    return GuestPower(state=state, operations_ready=bool(found.get("guest.guestOperationsReady")))


async def shutdown(ask: Ask, vm: str) -> None:
    await ask.do(vm_of(ask, vm), "ShutdownGuest")


async def reboot(ask: Ask, vm: str) -> None:
    await ask.do(vm_of(ask, vm), "RebootGuest")


async def standby(ask: Ask, vm: str) -> None:
    await ask.do(vm_of(ask, vm), "StandbyGuest")


async def get_tools(ask: Ask, vm: str) -> Tools:
    guest = (await ask.read(vm_of(ask, vm), "guest")).get("guest") or vim.vm.GuestInfo()
    version = str(guest.toolsVersion or "")
    return Tools(
        auto_update_supported=False,
        version_number=int(version) if version.isdigit() else None,
        version=version or None,
        upgrade_policy="MANUAL",
        version_status=_VERSIONS.get(str(guest.toolsVersionStatus2 or guest.toolsVersionStatus)),
        install_type="OPEN_VM_TOOLS" if version else None,
        run_state=_RUNS.get(str(guest.toolsRunningStatus), "NOT_RUNNING"),
    )


async def _processes(ask: Ask) -> Mo:
    operations = ask.same((await ask.content()).guestOperationsManager)
    return ask.same((await ask.read(operations, "processManager")).get("processManager"))


def _who(credentials: Credentials) -> Any:
    if credentials.type != "USERNAME_PASSWORD" or credentials.user_name is None:
        raise ApiError("invalid_argument", "credentials: a user name and a password are needed.")
    return vim.vm.guest.NamePasswordAuthentication(
        username=credentials.user_name,
        password=credentials.password or "",
        interactiveSession=credentials.interactive_session,
    )


async def create_process(ask: Ask, vm: str, credentials: Credentials, spec: ProcessCreate) -> int:
    program = vim.vm.guest.ProcessManager.ProgramSpec(
        programPath=spec.path,
        arguments=spec.arguments or "",
        workingDirectory=spec.working_directory,
        envVariables=[f"{name}={value}" for name, value in (spec.environment_variables or {}).items()],
    )
    manager, who = await _processes(ask), _who(credentials)
    return int(await ask.do(manager, "StartProgramInGuest", vm=vm_of(ask, vm).ref, auth=who, spec=program))


async def _listed(ask: Ask, vm: str, credentials: Credentials, pids: list[int] | None = None) -> list[Any]:
    manager, who = await _processes(ask), _who(credentials)
    return list(await ask.do(manager, "ListProcessesInGuest", vm=vm_of(ask, vm).ref, auth=who, pids=pids) or ())


async def list_processes(ask: Ask, vm: str, credentials: Credentials) -> list[ProcessSummary]:
    return [
        ProcessSummary(name=one.name, pid=one.pid, owner=one.owner, command=one.cmdLine, started=one.startTime)
        for one in await _listed(ask, vm, credentials)
    ]


async def get_process(ask: Ask, vm: str, credentials: Credentials, pid: int) -> ProcessInfo:
    found = await _listed(ask, vm, credentials, [pid])
    if not found:
        raise ApiError("not_found", f"The guest has no process {pid}.")
    one = found[0]
    return ProcessInfo(
        name=one.name, owner=one.owner, command=one.cmdLine, started=one.startTime, finished=one.endTime,
        exit_code=one.exitCode,
    )  # fmt: skip


async def delete_process(ask: Ask, vm: str, credentials: Credentials, pid: int) -> None:
    manager, who = await _processes(ask), _who(credentials)
    await ask.do(manager, "TerminateProcessInGuest", vm=vm_of(ask, vm).ref, auth=who, pid=pid)


_AT = "/vcenter/vm/{vm}/guest"
OPERATIONS = (
    Operation.of(f"{_GUEST}.identity", "get", "GET", f"{_AT}/identity", get_identity),
    Operation.of(f"{_GUEST}.networking", "get", "GET", f"{_AT}/networking", get_networking),
    Operation.of(f"{_GUEST}.networking.interfaces", "list", "GET", f"{_AT}/networking/interfaces", list_interfaces),
    Operation.of(f"{_GUEST}.networking.routes", "list", "GET", f"{_AT}/networking/routes", list_routes),
    Operation.of(f"{_GUEST}.power", "get", "GET", f"{_AT}/power", get_power),
    Operation.of(f"{_GUEST}.power", "shutdown", "POST", f"{_AT}/power?action=shutdown", shutdown),
    Operation.of(f"{_GUEST}.power", "reboot", "POST", f"{_AT}/power?action=reboot", reboot),
    Operation.of(f"{_GUEST}.power", "standby", "POST", f"{_AT}/power?action=standby", standby),
    Operation.of(f"{_GUEST}.processes", "create", "POST", f"{_AT}/processes?action=create", create_process),
    Operation.of(f"{_GUEST}.processes", "list", "POST", f"{_AT}/processes?action=list", list_processes),
    Operation.of(f"{_GUEST}.processes", "get", "POST", f"{_AT}/processes/{{pid}}?action=get", get_process),
    Operation.of(f"{_GUEST}.processes", "delete", "POST", f"{_AT}/processes/{{pid}}?action=delete", delete_process),
    Operation.of("com.vmware.vcenter.vm.tools", "get", "GET", "/vcenter/vm/{vm}/tools", get_tools),
)
