"""Files of guests over the real listener, and how they end; what would run in the guest answers by rote."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from ramet.host.service import Host
from ramet.model.access import AddUser, Role, SetVsphere
from ramet.model.requests import Exec
from ramet.model.views import ExecResult
from ramet.vsphere import ids
from ramet.vsphere.switch import served
from ramet.vsphere.types import vim
from tests.vsphere.kit import record_vm
from tests.vsphere.test_server import PASSWORD, Open, told

pytestmark = [  # pyVmomi leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PIECE = b"x" * 65536
SIZE = len(PIECE) * 1000
STATED = f"F|81a4|{SIZE}|1700000000|1700000001|0|0|/etc/x\n".encode()


class Guest:
    """One with a file that nobody has read to its end: it comes by and by."""

    def __init__(self) -> None:
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def run(self, host: Host, ref: str, request: Exec) -> ExecResult:
        return ExecResult(exit_code=0, stdout_base64=base64.b64encode(STATED).decode())

    async def read(self, host: Host, ref: str, path: str) -> AsyncGenerator[bytes, None]:
        try:
            self.begun.set()
            yield PIECE
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def write(self, host: Host, ref: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        try:
            async for _ in chunks:
                self.begun.set()
        finally:
            self.ended.set()


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    guest = Guest()
    monkeypatch.setattr(Host, "exec_in_vm", lambda *given: guest.run(*given))
    monkeypatch.setattr(Host, "read_file", lambda *given: guest.read(*given))
    monkeypatch.setattr(Host, "write_file", lambda *given: guest.write(*given))
    return guest


@pytest_asyncio.fixture
async def surface(host: Host) -> AsyncIterator[Open]:
    async with served(host):
        await host.access.add_user(AddUser(name="root", role=Role.ADMINISTRATOR, password=SecretStr(PASSWORD)))
        await host.access.add_user(AddUser(name="eve", role=Role.OPERATOR, password=SecretStr(PASSWORD)))
        yield Open(host.access, await host.access.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0")))
    gc.collect()


async def addresses(host: Host, surface: Open) -> tuple[Any, str, str]:
    """eve's session, and the paths of a file to read and of one to write."""
    vm = await record_vm(host, "web")
    si = await surface.connect("eve")
    auth = vim.vm.guest.NamePasswordAuthentication(username="root", password="p", interactiveSession=False)

    def ask() -> tuple[str, str]:
        files, web = si.content.guestOperationsManager.fileManager, vim.VirtualMachine(ids.vm_moid(vm.id), si._stub)
        told = files.InitiateFileTransferFromGuest(web, auth, "/etc/x")
        attributes = vim.vm.guest.FileManager.FileAttributes()
        return told.url, files.InitiateFileTransferToGuest(web, auth, "/etc/y", attributes, SIZE, True)

    down, up = await asyncio.to_thread(ask)
    si._stub.DropConnections()
    return si, down.partition(f":{surface.port}")[2], up.partition(f":{surface.port}")[2]


async def begin(surface: Open, method: str, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A transfer that is under way."""
    reader, writer = await surface.stream()
    body = f"Content-Length: {SIZE}\r\n\r\n".encode() + PIECE if method == "PUT" else b"\r\n"
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode() + body)
    if method == "GET":
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    return reader, writer


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_client_that_leaves_ends_what_is_done_for_it(
    host: Host, surface: Open, guest: Guest, method: str
) -> None:
    _, down, up = await addresses(host, surface)
    _, writer = await begin(surface, method, down if method == "GET" else up)
    writer.transport.abort()
    await asyncio.wait_for(guest.ended.wait(), 20)


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_user_who_is_removed_has_no_file_under_way(
    host: Host, surface: Open, guest: Guest, method: str
) -> None:
    _, down, up = await addresses(host, surface)
    reader, writer = await begin(surface, method, down if method == "GET" else up)
    await asyncio.wait_for(guest.begun.wait(), 20)
    await host.access.remove_user("eve")
    said = await told(reader) if method == "GET" else await asyncio.wait_for(reader.readline(), 20)
    await asyncio.wait_for(guest.ended.wait(), 20)
    assert not said.endswith(b"0\r\n\r\n"), "a body that is not whole must not look so"
    assert method == "GET" or said.startswith(b"HTTP/1.1 500")
    writer.transport.abort()


@pytest.mark.parametrize("ending", ["logout", "removed", "role", "password"])
async def test_an_address_is_no_good_once_its_session_is_over(
    host: Host, surface: Open, guest: Guest, ending: str
) -> None:
    si, down, up = await addresses(host, surface)
    match ending:
        case "logout":
            await asyncio.to_thread(lambda: si.content.sessionManager.Logout())
        case "removed":
            await host.access.remove_user("eve")
        case "role":
            await host.access.set_role("eve", Role.READ_ONLY)
        case "password":
            await host.access.set_password("eve", "another horse")
    assert (await surface.get(down))[0] == (await surface.get(up, "PUT", b""))[0] == 404
    assert not guest.ended.is_set()
