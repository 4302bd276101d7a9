"""Instant clones of a real guest through the API's own operations, and what clients then do inside them."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.host.settings import load
from ramet.model.access import AddUser, Role
from ramet.model.requests import BuildImage, CreateNetwork, CreateVm, Exec, NicRequest
from ramet.vsphere import ids
from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.guest import managers
from ramet.vsphere.guest.transfer import make_app
from ramet.vsphere.opening import open_world
from ramet.vsphere.types import vim
from tests.guest.leaks import left_behind

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

PASSWORD = "correct horse"
SECOND = "green"


class Client:
    """A client in the fewest words: calls, and waits for their tasks."""

    def __init__(self, host: Host, world: World, call: Call) -> None:
        self.host, self.world, self.call = host, world, call
        self.source = ""

    async def do(self, moid: str, method: str, **arguments: Any) -> Any:
        return await invoke(self.world, self.call, moid, method, arguments)

    async def done(self, moid: str, method: str, **arguments: Any) -> Any:
        """The task's result; its fault is raised."""
        task = await self.do(moid, method, **arguments)
        await self.host.tasks.wait(ids.task_id(task._moId) or "", 60.0)
        while (info := await read_now(self.world.find(task._moId), "info")).state in ("queued", "running"):
            await self.world.updates.wait(self.world.updates.stamp, 1.0)
        if info.state == "error":
            raise info.error
        return info.result

    async def sh(self, moid: str, script: str) -> str:
        request = Exec(argv=("/bin/sh", "-c", script), timeout_s=60)
        result = await self.host.exec_in_vm(ids.vm_id(moid) or "", request)
        output = base64.b64decode(result.stdout_base64).decode()
        assert result.exit_code == 0, f"{script}: {output} {base64.b64decode(result.stderr_base64)!r}"
        return output.strip()

    async def guest(
        self, manager: str, method: str, vm: Any, password: str = PASSWORD, user: str = "root", **more: Any
    ) -> Any:
        auth = vim.vm.guest.NamePasswordAuthentication(username=user, password=password, interactiveSession=False)
        return await self.do(manager, method, vm=vm, auth=auth, **more)

    def record(self, moid: str) -> Any:
        return self.host.floor.machines[ids.vm_id(moid) or ""].vm


def spec(name: str, *, network: str | None = None, connect: str = "unset", **config: str) -> Any:
    """Of an instant clone whose first card is to be on another network."""
    options = [vim.option.OptionValue(key=key.replace("_", "."), value=value) for key, value in config.items()]
    made = vim.vm.InstantCloneSpec(name=name, location=vim.vm.RelocateSpec(), config=options)
    if network is not None:
        made.location.deviceChange = [card(4000, network, connect, operation="edit")]
    return made


def card(key: int, network: str, connect: str = "unset", *, operation: str, connected: bool = True) -> Any:
    device = vim.vm.device.VirtualVmxnet3(
        key=key,
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            migrateConnect=connect, startConnected=connected, connected=connected, allowGuestControl=False
        ),
    )
    return vim.vm.device.VirtualDeviceSpec(operation=operation, device=device)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Client]:
    """A host with one booted source, and everything else that tests leave behind, gone afterwards."""
    state = Path(tempfile.mkdtemp(prefix="rv-", dir="/tmp"))
    state.chmod(0o755)
    async with Host.open(load({"state_dir": state}, env={})) as host, open_world(host) as world:
        await finish(host, await host.build_image(BuildImage(recipe="micro")))
        await host.create_network(CreateNetwork(name=SECOND, cidr="10.77.0.0/24", dhcp=True))
        await host.access.add_user(AddUser(name="root", role=Role.OPERATOR, password=SecretStr(PASSWORD)))
        found = Client(host, world, Call(await world.part(Sessions).login("root", PASSWORD)))
        request = CreateVm(name="source", image="micro", memory_mib=128, nics=(NicRequest(),), start=True)
        made = await finish(host, await host.create_vm(request))
        await host.wait_agent("source", 120.0)
        found.source = ids.vm_moid(made["id"])
        await found.sh(found.source, SHADOW)
        yield found
        await host.stop_all_vms()
    left = left_behind(state)
    shutil.rmtree(state, ignore_errors=True)
    assert not left, left


SHADOW = f"""
hash=$(echo '{PASSWORD}' | mkpasswd -m sha512 -P 0)
echo "root:$hash:::::::" >/etc/shadow
echo "eve:$hash:::::::" >>/etc/shadow
chmod 600 /etc/shadow
echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
echo 'eve:x:1000:1000:Eve:/tmp:/bin/sh' >>/etc/passwd
chmod 1777 /tmp; chmod 666 /dev/null
echo secret >/root/secret; chmod 700 /root
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clone(client: Client) -> Any:
    """Of the running source, in a folder, on the other network."""
    folder = await client.do(ids.VM_FOLDER, "CreateFolder", name="shoots")
    wanted = spec("live", network=SECOND, connect="connect", guestinfo_ic_hostname="shoot-1")
    wanted.location.folder = folder
    began = time.monotonic()
    made = await client.done(client.source, "InstantClone_Task", spec=wanted)
    took_ms = (time.monotonic() - began) * 1000
    timings = client.host.tasks.list()[0].result[0]["timings_ms"]
    print(f"instant clone: {took_ms:.0f} ms, of these the engine's {timings['total']:.0f} ms")
    return SimpleNamespace(ref=made, moid=made._moId, folder=folder)


async def test_a_live_clone_is_what_the_spec_says(client: Client, clone: Any) -> None:
    record = client.record(clone.moid)
    assert (record.name, record.lineage.workflow, record.identity.state.value) == ("live", "live", "bare")
    assert [(nic.network, nic.connected) for nic in record.machine.nics] == [(SECOND, True)]
    assert await client.sh(clone.moid, "vmware-rpctool 'info-get guestinfo.ic.hostname'") == "shoot-1"
    mo = client.world.find(clone.moid)
    assert (await read_now(mo, "parent"))._moId == clone.folder._moId
    extra = {option.key: option.value for option in await read_now(mo, "config.extraConfig")}
    assert extra["guestinfo.ic.hostname"] == "shoot-1"


async def test_a_name_is_refused_at_once_with_the_vm_that_has_it(client: Client, clone: Any) -> None:
    with pytest.raises(vim.fault.DuplicateName) as refused:
        await client.do(client.source, "InstantClone_Task", spec=spec("live"))
    assert (refused.value.name, refused.value.object._moId) == ("live", clone.moid)


async def test_the_check_says_what_the_clone_would_be_told(client: Client, clone: Any) -> None:
    source = vim.VirtualMachine(client.source)
    (good,) = await client.done("ProvChecker", "CheckInstantClone_Task", vm=source, spec=spec("fine"))
    (bad,) = await client.done("ProvChecker", "CheckInstantClone_Task", vm=source, spec=spec("live"))
    assert not good.error
    assert isinstance(bad.error[0], vim.fault.DuplicateName)


async def test_clones_of_a_frozen_source_begin_at_its_instant(client: Client) -> None:
    await client.sh(client.source, "echo before >/tmp/instant")
    await finish(client.host, await client.host.freeze_vm("source"))
    try:
        source = client.world.find(client.source)
        assert await read_now(source, "runtime.instantCloneFrozen") is True
        wanted = spec("from-frozen", network=SECOND, connect="disconnect", guestinfo_n="2")
        made = await client.done(client.source, "InstantClone_Task", spec=wanted)
        assert await client.sh(made._moId, "cat /tmp/instant; vmware-rpctool 'info-get guestinfo.n'") == "before\n2"
        record = client.record(made._moId)
        assert [(nic.network, nic.connected) for nic in record.machine.nics] == [(SECOND, False)]
        await client.done(made._moId, "PowerOffVM_Task")
        await client.done(made._moId, "Destroy_Task")
        assert client.world.get(made._moId) is None
    finally:
        await finish(client.host, await client.host.thaw_vm("source"))


async def test_cards_are_reconfigured_while_the_guest_runs(client: Client, clone: Any) -> None:
    def change(*specs: Any) -> Any:
        return vim.vm.ConfigSpec(deviceChange=list(specs))

    new = card(-1, SECOND, operation="add")
    new.device = vim.vm.device.VirtualE1000e(key=-1, backing=new.device.backing)
    edit = card(4000, "default", operation="edit", connected=False)
    await client.done(clone.moid, "ReconfigVM_Task", spec=change(edit, new))
    nics = client.record(clone.moid).machine.nics
    assert [(nic.id, nic.network, nic.connected) for nic in nics] == [
        ("net0", "default", False),
        ("net1", SECOND, True),
    ]
    await client.done(clone.moid, "ReconfigVM_Task", spec=change(card(4001, SECOND, operation="remove")))
    await client.done(clone.moid, "ReconfigVM_Task", spec=change(card(4000, SECOND, operation="edit")))
    assert [(nic.id, nic.network) for nic in client.record(clone.moid).machine.nics] == [("net0", SECOND)]
    options = [vim.option.OptionValue(key="guestinfo.late", value="yes")]
    await client.done(clone.moid, "ReconfigVM_Task", spec=vim.vm.ConfigSpec(extraConfig=options, annotation="Hm."))
    assert await client.sh(clone.moid, "vmware-rpctool 'info-get guestinfo.late'") == "yes"


async def test_programs_run_in_the_guest_as_its_users(client: Client, clone: Any) -> None:
    async def run(arguments: str, **more: Any) -> Any:
        program = vim.vm.guest.ProcessManager.ProgramSpec(programPath="/bin/sh", arguments=arguments)
        return await client.guest(managers.PROCESSES, "StartProgramInGuest", clone.ref, spec=program, **more)

    await client.guest(managers.AUTH, "ValidateCredentialsInGuest", clone.ref)
    for user, password in (("root", "wrong"), ("nobody-here", PASSWORD)):
        with pytest.raises(vim.fault.InvalidGuestLogin):
            await client.guest(managers.AUTH, "ValidateCredentialsInGuest", clone.ref, password, user)
    pid = await run("-c 'id -u >/tmp/who; exit 3'", user="eve")
    ended = None
    while ended is None:
        (one,) = await client.guest(managers.PROCESSES, "ListProcessesInGuest", clone.ref, pids=[pid])
        ended = one if one.endTime is not None else None
    assert (ended.exitCode, ended.owner) == (3, "eve")
    assert await client.sh(clone.moid, "cat /tmp/who") == "1000"
    pid = await run("-c 'sleep 100'")
    listed = await client.guest(managers.PROCESSES, "ListProcessesInGuest", clone.ref)
    (sleeper,) = [one for one in listed if one.pid == pid]
    assert (sleeper.owner, "sleep 100" in sleeper.cmdLine) == ("root", True)
    with pytest.raises(vim.fault.GuestPermissionDenied):
        await client.guest(managers.PROCESSES, "TerminateProcessInGuest", clone.ref, user="eve", pid=pid)
    await client.guest(managers.PROCESSES, "TerminateProcessInGuest", clone.ref, pid=pid)
    with pytest.raises(vim.fault.GuestProcessNotFound):
        await client.guest(managers.PROCESSES, "TerminateProcessInGuest", clone.ref, pid=999999)
    told = await client.guest(managers.PROCESSES, "ReadEnvironmentVariableInGuest", clone.ref, names=["USER", "NO"])
    assert list(told) == ["USER=root"]


async def _http(client: Client, method: str, url: str, body: bytes = b"") -> tuple[int, bytes]:
    """One request to the transfers' app, by a client that stays."""
    sent: list[Mapping[str, Any]] = []
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Mapping[str, Any]:
        return left.pop() if left else await asyncio.Future()

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    query = url.partition("?")[2].encode()
    await make_app(client.world)({"type": "http", "method": method, "query_string": query}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


async def test_files_of_the_guest_are_its_users(client: Client, clone: Any) -> None:
    files = managers.FILES
    attributes = vim.vm.guest.FileManager.PosixFileAttributes(permissions=0o640)
    for user in ("root", "eve"):
        path, content = f"/tmp/of-{user}/it's", b"x" * 300_000 + user.encode()
        await client.guest(
            files,
            "MakeDirectoryInGuest",
            clone.ref,
            user=user,
            directoryPath=f"/tmp/of-{user}",
            createParentDirectories=False,
        )
        url = await client.guest(
            files, "InitiateFileTransferToGuest", clone.ref, user=user, guestFilePath=path,
            fileAttributes=attributes, fileSize=len(content), overwrite=False,
        )  # fmt: skip
        assert re.match(r"https://\*:\d+/guestFile\?token=", url)
        assert await _http(client, "PUT", url, content) == (200, b"")
        assert (await _http(client, "PUT", url, content))[0] == 404
        told = await client.guest(files, "InitiateFileTransferFromGuest", clone.ref, user=user, guestFilePath=path)
        assert (told.size, told.attributes.permissions) == (len(content), 0o640)
        assert await _http(client, "GET", told.url) == (200, content)
        listed = await client.guest(
            files, "ListFilesInGuest", clone.ref, user=user, filePath=f"/tmp/of-{user}", matchPattern="it"
        )
        assert [(one.path, one.type, one.size) for one in listed.files] == [("it's", "file", len(content))]
        await client.guest(
            files, "MoveFileInGuest", clone.ref, user=user, srcFilePath=path, dstFilePath=f"{path}2", overwrite=False
        )
        with pytest.raises(vim.fault.DirectoryNotEmpty):
            await client.guest(
                files, "DeleteDirectoryInGuest", clone.ref, user=user, directoryPath=f"/tmp/of-{user}", recursive=False
            )
        await client.guest(files, "DeleteFileInGuest", clone.ref, user=user, filePath=f"{path}2")
        await client.guest(
            files, "DeleteDirectoryInGuest", clone.ref, user=user, directoryPath=f"/tmp/of-{user}", recursive=False
        )
    with pytest.raises(vim.fault.GuestPermissionDenied):
        await client.guest(files, "InitiateFileTransferFromGuest", clone.ref, user="eve", guestFilePath="/root/secret")
    with pytest.raises(vim.fault.NotAFile):
        await client.guest(files, "InitiateFileTransferFromGuest", clone.ref, guestFilePath="/dev/zero")
    told = await client.guest(files, "InitiateFileTransferFromGuest", clone.ref, guestFilePath="/proc/version")
    assert (await _http(client, "GET", told.url))[1].startswith(b"Linux")
    assert "transfer" not in await client.sh(clone.moid, "ls /var/lib/ramet")
    with pytest.raises(vim.fault.FileNotFound):
        await client.guest(files, "DeleteFileInGuest", clone.ref, filePath="/tmp/nothing")
    made = await client.guest(files, "CreateTemporaryFileInGuest", clone.ref, user="eve", prefix="a b", suffix=".txt")
    assert re.fullmatch(r"/tmp/a b\w{6}\.txt", made)


async def test_a_clone_is_customized_while_it_runs(client: Client, clone: Any) -> None:
    kinds = vim.vm.customization
    fixed = kinds.IPSettings(
        ip=kinds.FixedIp(ipAddress="10.77.0.50"), subnetMask="255.255.255.0", gateway=["10.77.0.1"]
    )
    wanted = kinds.Specification(
        identity=kinds.LinuxPrep(hostName=kinds.FixedName(name="shoot"), domain="example.org"),
        globalIPSettings=kinds.GlobalIPSettings(dnsServerList=["10.77.0.1"]),
        nicSettingMap=[kinds.AdapterMapping(adapter=fixed)],
    )
    auth = vim.vm.guest.NamePasswordAuthentication(username="root", password=PASSWORD, interactiveSession=False)
    manager = managers.CUSTOMIZATION
    await client.done(manager, "CustomizeGuest_Task", vm=clone.ref, auth=auth, spec=wanted, configParams=[])
    said = await client.sh(clone.moid, "hostname; ip -4 -o addr show scope global; cat /sys/class/net/eth0/address")
    assert said.startswith("shoot\n")
    assert "10.77.0.50/24" in said
    assert client.record(clone.moid).machine.nics[0].mac in said
    await client.done(manager, "StartGuestNetwork_Task", vm=clone.ref, auth=auth)
    for _ in range(2):
        await client.done(manager, "AbortCustomization_Task", vm=clone.ref, auth=auth)


async def test_a_source_that_is_off_is_refused(client: Client, clone: Any) -> None:
    """The last one: the clone ends here."""
    with pytest.raises(vim.fault.InvalidPowerState):
        await client.do(clone.moid, "Destroy_Task")
    await client.do(clone.moid, "ShutdownGuest")
    while await read_now(client.world.find(clone.moid), "runtime.powerState") != "poweredOff":
        assert await client.world.updates.wait(client.world.updates.stamp, 60.0)
    with pytest.raises(vim.fault.InvalidPowerState) as refused:
        await client.do(clone.moid, "InstantClone_Task", spec=spec("never"))
    assert refused.value.existingState == "poweredOff"
    path = await read_now(client.world.find(clone.moid), "config.files.vmPathName")
    await client.do(clone.moid, "UnregisterVM")
    back = await client.done(clone.folder._moId, "RegisterVM_Task", path=path, asTemplate=False)
    assert back._moId == clone.moid
    await client.done(clone.folder._moId, "Destroy_Task")
    assert client.world.get(clone.moid) is None
    assert client.world.get(clone.folder._moId) is None
