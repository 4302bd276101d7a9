"""Consoles: tickets, and RFB over a real WebSocket in TLS, with a socket in the place of QEMU's display."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from pyVim.connect import Disconnect
from pyVmomi import vim as client_vim
from pyVmomi import vmodl as client_vmodl
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from ramet.host.service import Host
from ramet.machine.live import LiveMachine
from ramet.model.access import AddUser, Role, SetVsphere
from ramet.model.machine import Display
from ramet.vsphere import ids
from ramet.vsphere import websocket as websocket_module
from ramet.vsphere.access.roles import Roles
from ramet.vsphere.console import consoles as consoles_module
from ramet.vsphere.switch import Surface, served
from tests.vsphere.kit import record_vm, until
from tests.vsphere.test_server import PASSWORD, Open, told

HELLO = b"RFB 003.008\n"
BINARY = Subprotocol("binary")
MIB = 1 << 20

pytestmark = [  # pyVmomi leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Process:
    """As much of a QEMU as is asked of one whose sockets somebody else serves."""

    def close(self) -> None: ...


class Screen:
    """A VM that seems to run, and who serves its display."""

    def __init__(self, live: LiveMachine) -> None:
        self.live = live
        self.taken: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        path = self.live.run_dir.vnc
        path.parent.mkdir(parents=True)
        self._server = await asyncio.start_unix_server(self._take, path)
        self.live.process = Process()  # type: ignore[assignment]
        self.live.ended.clear()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        writer.write(HELLO)
        self.taken.put_nowait((reader, writer))

    async def next(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.wait_for(self.taken.get(), 10)

    async def stop(self) -> None:
        self.live.process = None
        self.live.ended.set()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):  # the other side may be gone
                await writer.wait_closed()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


class Bench:
    """The listener, a VM with a display, and a client that is logged in."""

    def __init__(self, host: Host, open_: Open, screen: Screen, si: Any) -> None:
        self.host, self.open, self.screen, self.si = host, open_, screen, si
        self.vm = self.machine(screen.live.id)

    def machine(self, vm_id: str) -> Any:
        return client_vim.VirtualMachine(ids.vm_moid(vm_id), self.si._stub)

    async def ticket(self, kind: str = "webmks", vm: Any = None) -> Any:
        return await asyncio.to_thread((vm or self.vm).AcquireTicket, kind)

    async def dial(self, url: str | None = None, **more: Any) -> ClientConnection:
        """No proxy, and no compression: the server does not do it anyhow."""
        wanted = url or (await self.ticket()).url
        return await connect(wanted, ssl=self.open.tls, proxy=None, **more)

    async def another(self, name: str, role: Role) -> tuple[Any, Any]:
        """Somebody else who is logged in, and the VM as they see it."""
        await self.open.desk.add_user(AddUser(name=name, role=role, password=SecretStr(PASSWORD)))
        si = await self.open.connect(name)
        return si, client_vim.VirtualMachine(self.vm._moId, si._stub)

    async def refused(self, url: str, **more: Any) -> tuple[int, str]:
        with pytest.raises(InvalidStatus) as refused:
            await self.dial(url, **more)
        answer = refused.value.response
        return answer.status_code, (answer.body or b"").decode()

    @property
    def sockets(self) -> list[websocket_module.WebSocket]:
        surface = self.host.access._listener
        assert isinstance(surface, Surface)
        assert surface._server is not None
        return [one for one in surface._server.connections if isinstance(one, websocket_module.WebSocket)]


@pytest_asyncio.fixture
async def bench(host: Host) -> AsyncIterator[Bench]:
    async with served(host):
        await host.access.add_user(AddUser(name="root", role=Role.ADMINISTRATOR, password=SecretStr(PASSWORD)))
        open_ = Open(host.access, await host.access.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0")))
        vm = await record_vm(host, "web", display=Display.VGA)
        screen = Screen(host.floor.machines[vm.id])
        await screen.start()
        si = await open_.connect()
        try:
            yield Bench(host, open_, screen, si)
        finally:
            await asyncio.to_thread(si._stub.DropConnections)
            await screen.stop()
    gc.collect()


def audited(state_dir: Path, action: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (state_dir / "audit.jsonl").read_text().splitlines()]
    return [line for line in lines if line["action"] == action]


async def test_bytes_go_both_ways_and_who_opened_it_is_written_down(bench: Bench, state_dir: Path) -> None:
    ticket = await bench.ticket()
    assert (ticket.host, ticket.port) == ("127.0.0.1", bench.open.port)
    assert ticket.url == f"wss://127.0.0.1:{bench.open.port}/ticket/{ticket.ticket}"
    assert ticket.cfgFile.endswith("/web.vmx")
    [thumbprint] = ticket.certThumbprintList
    assert (thumbprint.thumbprint, thumbprint.hashAlgorithm) == (bench.open.view.fingerprint_sha256, "sha256")
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", bench.open.port))
    assert ticket.sslThumbprint == hashlib.sha1(ssl.PEM_cert_to_DER_cert(pem)).digest().hex(":").upper()
    async with await bench.dial(ticket.url, subprotocols=[BINARY, Subprotocol("uint8utf8")]) as client:
        assert client.subprotocol == "binary"
        assert await client.recv() == HELLO
        reader, writer = await bench.screen.next()
        await client.send(b"RFB 003.008\n")
        await client.send([b"in ", b"pieces"])
        assert await reader.readexactly(len(HELLO) + 9) == b"RFB 003.008\nin pieces"
        writer.write(b"\x01\x01")
        assert await client.recv() == b"\x01\x01"
    assert await reader.read() == b""
    await until(lambda: _all(lambda: len(audited(state_dir, "console.close")) == 1))
    [opened] = audited(state_dir, "console.open")
    assert (opened["user"], opened["name"], opened["result"]) == ("root", "web", "ok")
    assert (opened["object"], opened["peer"]) == (ids.vm_moid(bench.screen.live.id), "127.0.0.1")
    assert ticket.ticket not in (state_dir / "audit.jsonl").read_text()


async def _all(true: Callable[[], bool]) -> bool:
    return true()


async def test_a_ticket_is_good_once_and_not_for_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    url = (await bench.ticket()).url
    async with await bench.dial(url):
        status, said = await bench.refused(url)
        assert status == 403
        assert "good once" in said
    assert (await bench.refused(url.rpartition("/")[0] + "/guess"))[0] == 403
    monkeypatch.setattr(consoles_module, "TICKET_S", 0.0)
    assert (await bench.refused((await bench.ticket()).url))[0] == 403


async def test_a_ticket_ends_with_its_session_and_an_open_console_does_not(bench: Bench) -> None:
    url = (await bench.ticket()).url
    async with await bench.dial() as client:
        await asyncio.to_thread(Disconnect, bench.si)
        assert (await bench.refused(url))[0] == 403
        assert await client.recv() == HELLO


async def test_what_is_refused_and_how(bench: Bench) -> None:
    blind = await record_vm(bench.host, "blind")
    off = await record_vm(bench.host, "off", display=Display.VIRTIO)
    for kind, vm, fault, said in (
        ("webmks", bench.machine(blind.id), client_vim.fault.InvalidState, "'blind' has no display"),
        ("webmks", bench.machine(off.id), client_vim.fault.InvalidPowerState, "'off' is off"),
        ("mks", bench.vm, client_vmodl.fault.NotSupported, "webmks"),
        ("guestControl", bench.vm, client_vmodl.fault.NotSupported, "webmks"),
        ("x", bench.vm, client_vmodl.fault.InvalidArgument, "webmks"),
    ):
        await until(lambda vm=vm: _all(lambda: _is_known(bench, vm)))  # type: ignore[misc]
        with pytest.raises(fault) as refused:
            await bench.ticket(kind, vm)
        assert said in str(refused.value.msg)  # type: ignore[attr-defined]
    with pytest.raises(client_vmodl.fault.NotSupported):
        await asyncio.to_thread(bench.vm.AcquireMksTicket)


def _is_known(bench: Bench, vm: Any) -> bool:
    surface = bench.host.access._listener
    assert isinstance(surface, Surface)
    assert surface._world is not None
    return surface._world.get(vm._moId) is not None


async def test_who_may_only_look_gets_no_ticket(bench: Bench) -> None:
    await bench.open.desk.add_user(AddUser(name="eve", role=Role.READ_ONLY, password=SecretStr(PASSWORD)))
    si = await bench.open.connect("eve")
    vm = client_vim.VirtualMachine(bench.vm._moId, si._stub)
    with pytest.raises(client_vim.fault.NoPermission) as refused:
        await bench.ticket(vm=vm)
    assert refused.value.privilegeId == "VirtualMachine.Interact.ConsoleInteract"
    await asyncio.to_thread(si._stub.DropConnections)


async def _display_ends(bench: Bench, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _vm_ends(bench: Bench, writer: asyncio.StreamWriter) -> None:
    bench.screen.live.ended.set()


async def _user_is_removed(bench: Bench, writer: asyncio.StreamWriter) -> None:
    await bench.open.desk.add_user(AddUser(name="other", role=Role.ADMINISTRATOR, password=SecretStr(PASSWORD)))
    await bench.open.desk.remove_user("root")


async def _server_ends(bench: Bench, writer: asyncio.StreamWriter) -> None:
    await bench.open.desk.set_vsphere(SetVsphere(on=False))


@pytest.mark.parametrize(
    ("end", "code"),
    [(_display_ends, 1000), (_vm_ends, 1000), (_user_is_removed, 1008), (_server_ends, 1012)],
)
async def test_it_is_closed_when_what_it_shows_is_gone(
    bench: Bench, end: Callable[[Bench, asyncio.StreamWriter], Awaitable[None]], code: int
) -> None:
    async with await bench.dial() as client:
        assert await client.recv() == HELLO
        reader, writer = await bench.screen.next()
        await end(bench, writer)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(client.recv(), 10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_nobody_is_sent_more_than_is_taken(bench: Bench) -> None:
    """Both ways: the rest waits at its sender."""
    piece, pieces = bytes(MIB), 48
    async with await bench.dial(max_queue=2, max_size=None) as client:
        reader, writer = await bench.screen.next()
        sent = {"display": 0, "client": 0}

        async def show() -> None:
            for _ in range(pieces):
                writer.write(piece)
                await writer.drain()
                sent["display"] += 1

        async def type_() -> None:
            for _ in range(pieces):
                await client.send(piece)
                sent["client"] += 1

        senders = [asyncio.create_task(show()), asyncio.create_task(type_())]
        await _stands_still(lambda: tuple(sent.values()))
        assert max(sent.values()) < pieces / 2, sent
        typed = asyncio.create_task(reader.readexactly(pieces * MIB))
        shown = 0
        while shown < pieces * MIB + len(HELLO):
            shown += len(await asyncio.wait_for(client.recv(), 20))
        assert len(await asyncio.wait_for(typed, 30)) == pieces * MIB
        await asyncio.gather(*senders)
        writer.close()


async def _stands_still(now: Callable[[], object]) -> None:
    """Nothing tells that nothing happens any more."""
    before, same = now(), 0
    while same < 20:
        await asyncio.sleep(0.02)
        before, same = now(), same + 1 if now() == before else 0


async def test_other_protocols_and_text_are_refused(bench: Bench) -> None:
    url = (await bench.ticket()).url
    status, said = await bench.refused(url, subprotocols=[Subprotocol("uint8utf8")])
    assert (status, "binary" in said) == (400, True)
    assert (await bench.refused(url))[0] == 403, "an address that others may have seen is no good"
    async with await bench.dial() as client:
        assert client.subprotocol is None
        assert await client.recv() == HELLO
        await client.send("text")
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(client.recv(), 10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1003


async def test_there_is_a_bound_to_how_many_are_open(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consoles_module, "MOST", 1)
    async with await bench.dial():
        status, said = await bench.refused((await bench.ticket()).url)
        assert (status, "open already" in said) == (503, True)


async def test_a_user_with_many_consoles_leaves_room_for_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consoles_module, "MOST_EACH", 1)
    eve, vm = await bench.another("eve", Role.OPERATOR)
    async with await bench.dial():
        status, said = await bench.refused((await bench.ticket()).url)
        assert (status, "of 'root' are open already" in said) == (503, True)
        async with await bench.dial((await bench.ticket(vm=vm)).url) as client:
            assert await client.recv() == HELLO
    await asyncio.to_thread(eve._stub.DropConnections)


def watched(bench: Bench) -> Roles:
    surface = bench.host.access._listener
    assert isinstance(surface, Surface)
    assert surface._world is not None
    return surface._world.part(Roles)


LOOKS = ["VirtualMachine.Interact.ConsoleInteract"]


async def _revoked(roles: Roles, role: int) -> None:
    await roles.revoke("eve")


async def _removed(roles: Roles, role: int) -> None:
    await roles.remove(role, fail_if_used=False)


async def _emptied(roles: Roles, role: int) -> None:
    await roles.update(role, "of eve", ["Datastore.Browse"])


async def _replaced(roles: Roles, role: int) -> None:
    await roles.grant("eve", await roles.add("another", ["Datastore.Browse"]))


@pytest.mark.parametrize("take", [_revoked, _removed, _emptied, _replaced])
async def test_a_console_does_not_outlive_the_role_that_allows_it(
    bench: Bench, take: Callable[[Roles, int], Awaitable[None]]
) -> None:
    eve, vm = await bench.another("eve", Role.READ_ONLY)
    roles = watched(bench)
    role = await roles.add("of eve", LOOKS)
    await roles.grant("eve", role)
    unused = (await bench.ticket(vm=vm)).url
    async with await bench.dial((await bench.ticket(vm=vm)).url) as client, await bench.dial() as other:
        assert await client.recv() == await other.recv() == HELLO
        await roles.update(role, "renamed", [*LOOKS, "Datastore.Browse"])
        await bench.screen.next()
        _, writer = await bench.screen.next()
        await take(roles, role)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(client.recv(), 10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        writer.write(b"there")
        assert await asyncio.wait_for(other.recv(), 10) == b"there", "root's own goes on"
    assert (await bench.refused(unused))[0] == 403
    await asyncio.to_thread(eve._stub.DropConnections)


async def test_no_log_tells_a_ticket_or_what_is_typed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tickets = [await bench.ticket() for _ in range(2)]
    await bench.refused(tickets[0].url, subprotocols=[Subprotocol("uint8utf8")])
    async with await bench.dial(tickets[1].url) as client:
        reader, _ = await bench.screen.next()
        await client.send(b"hush-hush")
        assert await reader.readexactly(9) == b"hush-hush"
    said = "".join(record.getMessage() for record in caplog.records if record.name != "websockets.client")
    assert not [ticket for ticket in tickets if ticket.ticket in said]
    assert "hush" not in said


async def test_a_display_that_does_not_answer_is_told(bench: Bench, state_dir: Path) -> None:
    url = (await bench.ticket()).url
    bench.screen.live.run_dir.vnc.unlink()
    status, said = await bench.refused(url)
    assert (status, "does not answer" in said) == (409, True)
    await until(lambda: _all(lambda: len(audited(state_dir, "console.open")) == 1))
    assert audited(state_dir, "console.open")[0]["result"] == "Guest"


# -- who is rude -------------------------------------------------------------------------------------------------------

UPGRADE = (
    b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        (b"GET /ticket/x HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 426 "),
        (b"POST /ticket/x HTTP/1.1\r\n" + UPGRADE, b"HTTP/1.1 426 "),
        (b"GET /nothing HTTP/1.1\r\nConnection: close\r\n" + UPGRADE, b"HTTP/1.1 404 "),
        (b"GET /ticket/x HTTP/1.1\r\n" + UPGRADE, b"HTTP/1.1 403 "),
        (b"GET /ticket/x HTTP/1.1\r\n" + UPGRADE.replace(b"Key", b"Kay"), b"HTTP/1.1 400 "),
        (b"GET /ticket/x HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(150)) + UPGRADE, b""),
        (b"GET /ticket/x HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n" + UPGRADE, b""),
    ],
)
async def test_a_head_that_is_not_one(bench: Bench, head: bytes, answer: bytes) -> None:
    reader, writer = await bench.open.stream()
    writer.write(head)
    said = await told(reader) if b"/nothing" not in head else await reader.read(64)
    assert said.startswith(answer)
    assert bool(said) == bool(answer), said[:100]
    writer.close()
    await until(lambda: _all(lambda: not bench.sockets))


async def _upgraded(bench: Bench) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that speaks for itself."""
    path = (await bench.ticket()).url.partition("/ticket/")[2]
    reader, writer = await bench.open.stream()
    writer.write(b"GET /ticket/" + path.encode() + b" HTTP/1.1\r\n" + UPGRADE)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return reader, writer


async def test_who_only_pings_fills_no_memory(bench: Bench) -> None:
    _, writer = await _upgraded(bench)
    [socket] = bench.sockets
    ping = b"\x89\xfd\x00\x00\x00\x00" + bytes(125)
    for _ in range(64):
        writer.write(ping * 2048)
        await writer.drain()
        assert socket.transport.get_write_buffer_size() < 2 * MIB
    writer.transport.abort()


async def test_a_message_has_no_end_of_pieces_and_no_end_of_bytes(bench: Bench) -> None:
    for flood in (
        b"\x02\x80\x00\x00\x00\x00" + b"\x00\x80\x00\x00\x00\x00" * (2 * websocket_module.MOST_FRAGMENTS),
        b"\x82\xff" + (2 * websocket_module.MOST_BYTES).to_bytes(8) + b"\x00\x00\x00\x00",
    ):
        reader, writer = await _upgraded(bench)
        writer.write(flood)
        said = await told(reader)
        assert b"\x88" in said
        assert (1009).to_bytes(2) in said
        writer.close()
    await until(lambda: _all(lambda: not bench.sockets))


async def test_one_that_is_open_does_not_make_room_for_others(host: Host) -> None:
    async with served(host):
        host.settings = host.settings.model_copy(update={"connections_max": 3})
        await host.access.add_user(AddUser(name="root", role=Role.ADMINISTRATOR, password=SecretStr(PASSWORD)))
        open_ = Open(host.access, await host.access.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0")))
        vm = await record_vm(host, "web", display=Display.VGA)
        screen = Screen(host.floor.machines[vm.id])
        await screen.start()
        si = await open_.connect()
        bench = Bench(host, open_, screen, si)
        try:
            async with await bench.dial() as client:
                assert await client.recv() == HELLO
                idle = [await open_.stream() for _ in range(3)]
                await open_.get("/health")
                _, writer = await screen.next()
                writer.write(b"there")
                assert await client.recv() == b"there"
                for _, other in idle:
                    other.close()
        finally:
            await asyncio.to_thread(si._stub.DropConnections)
            await screen.stop()
    gc.collect()
