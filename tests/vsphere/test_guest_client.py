"""Guest operations as an unmodified pyVmomi sees them; what would run in the guest answers by rote."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ramet.host.service import Host
from ramet.model.requests import Exec
from ramet.model.views import ExecResult
from ramet.vsphere.core.world import World
from ramet.vsphere.guest import scripts
from ramet.vsphere.types import vim
from tests.vsphere.kit import record_vm, seen

ANSWERS = {
    scripts.LIST: b"F|41ed|4096|1700000000|1700000000|0|0|.\nF|a1ff|3|1700000000|1700000000|0|0|./l\nL|./l\netc\n",
    scripts.PROCESSES: b"B 1700000000\nT 100\nU 0 root\n"
    b"P 0 1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 250 1 2\nC /sbin/init\n",
    scripts.ENVIRONMENT: b"HOME=/root\nUSER=root\n",
    scripts.TEMPORARY: b"/tmp/aXXXX.txt\n",
    scripts.READABLE: b"F|81a4|12|1700000000|1700000001|0|0|/etc/x\n",
}


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(host: Host, ref: str, request: Exec) -> ExecResult:
        output = ANSWERS.get(request.argv[7], b"")
        return ExecResult(exit_code=0, stdout_base64=base64.b64encode(output).decode())

    async def spawn(host: Host, ref: str, request: Exec) -> int:
        return 4242

    async def ended(host: Host, ref: str, pid: int) -> ExecResult:
        return ExecResult(exit_code=3)

    monkeypatch.setattr(Host, "exec_in_vm", run)
    monkeypatch.setattr(Host, "spawn_in_vm", spawn)
    monkeypatch.setattr(Host, "ended_in_vm", ended)


@pytest.mark.usefixtures("guest")
async def test_every_guest_operation_goes_over_the_wire(
    host: Host, world: World, connect: Callable[[], Awaitable[Any]]
) -> None:
    mo = await seen(world, await record_vm(host, "web"))
    si = await connect()
    auth = vim.vm.guest.NamePasswordAuthentication(username="root", password="p", interactiveSession=False)

    def use() -> None:
        vm = vim.VirtualMachine(mo.moid, si._stub)
        managers = si.content.guestOperationsManager
        assert managers.authManager.ValidateCredentialsInGuest(vm, auth) is None
        processes, files = managers.processManager, managers.fileManager
        spec = vim.vm.guest.ProcessManager.ProgramSpec(programPath="/bin/x", arguments="a", envVariables=["A=b"])
        pid = processes.StartProgramInGuest(vm, auth, spec)
        init, program = processes.ListProcessesInGuest(vm, auth, None)
        assert (pid, program.pid, program.exitCode, init.pid, init.endTime) == (4242, 4242, 3, 1, None)
        assert processes.ReadEnvironmentVariableInGuest(vm, auth, None) == ["HOME=/root", "USER=root"]
        assert processes.TerminateProcessInGuest(vm, auth, 1) is None
        listed = files.ListFilesInGuest(vm, auth, "/", None, 1, None)
        assert ([one.path for one in listed.files], listed.remaining) == (["."], 1)
        link = files.ListFilesInGuest(vm, auth, "/", 1).files[0]
        assert (link.type, link.attributes.symlinkTarget) == ("symlink", "etc")
        assert files.CreateTemporaryFileInGuest(vm, auth, "a", ".txt", None) == "/tmp/aXXXX.txt"
        told = files.InitiateFileTransferFromGuest(vm, auth, "/etc/x")
        assert (told.size, told.attributes.permissions) == (12, 0o644)
        attributes = vim.vm.guest.FileManager.FileAttributes()
        url = files.InitiateFileTransferToGuest(vm, auth, "/etc/x", attributes, 3, True)
        assert "/guestFile?token=" in url
        silent = (
            files.MakeDirectoryInGuest(vm, auth, "/x", False),
            files.MoveFileInGuest(vm, auth, "/x", "/y", True),
            files.MoveDirectoryInGuest(vm, auth, "/x", "/y"),
            files.DeleteFileInGuest(vm, auth, "/x"),
            files.DeleteDirectoryInGuest(vm, auth, "/x", True),
            files.ChangeFileAttributesInGuest(vm, auth, "/x", attributes),
        )
        assert set(silent) == {None}

    await asyncio.to_thread(use)
