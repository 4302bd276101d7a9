"""The listener: TLS, bounds, slow and rude clients, an end that leaves nobody waiting. With pyVmomi as the client."""

from __future__ import annotations

import asyncio
import gc
import http.client
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vmodl as client_vmodl

from ramet.errors import ConflictError, PrivilegeError, UsageError
from ramet.host.access_desk import AccessDesk
from ramet.host.service import Host
from ramet.model.access import AddUser, Role, SetVsphere, VsphereView
from ramet.vsphere import server as server_module
from ramet.vsphere.switch import Surface, _explained, served

PASSWORD = "correct horse"

pytestmark = [  # pyVmomi leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Open:
    """A listener on loopback, and ways to speak with it. What blocks runs in threads."""

    def __init__(self, desk: AccessDesk, view: VsphereView) -> None:
        self.desk, self.view = desk, view
        assert view.url is not None
        assert view.ca_file is not None
        self.port = int(view.url.rstrip("/").rpartition(":")[2])
        self.tls = ssl.create_default_context(cafile=view.ca_file)

    async def connect(self, name: str = "root", password: str = PASSWORD) -> Any:
        return await asyncio.to_thread(
            SmartConnect, host="127.0.0.1", port=self.port, user=name, pwd=password, sslContext=self.tls
        )

    async def stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)

    async def get(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes, Any]:
        def ask() -> tuple[int, bytes, Any]:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls, timeout=20)
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            return answer.status, data, answer.headers

        return await asyncio.to_thread(ask)


@pytest_asyncio.fixture
async def surface(host: Host) -> AsyncIterator[Open]:
    async with served(host):
        await host.access.add_user(AddUser(name="root", role=Role.ADMINISTRATOR, password=SecretStr(PASSWORD)))
        yield Open(host.access, await host.access.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0")))
    gc.collect()


async def told(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other side closes; b'' when it cuts."""
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except (ConnectionError, ssl.SSLError):
        return b""


async def test_pyvmomi_connects_over_tls_that_it_verifies(surface: Open) -> None:
    si = await surface.connect()
    assert await asyncio.to_thread(lambda: si.content.sessionManager.currentSession.userName) == "root"
    assert await asyncio.to_thread(lambda: si.content.about.apiVersion) == "8.0.3.0"
    assert surface.desk.vsphere().sessions == 1
    assert surface.desk.list_users()[0].sessions == 1
    await asyncio.to_thread(Disconnect, si)
    assert surface.desk.vsphere().sessions == 0


async def test_a_wrong_password_and_a_removed_user_do_not_get_in(surface: Open) -> None:
    with pytest.raises(Exception, match="incorrect user name or password"):
        await surface.connect(password="wrong word")
    await surface.desk.add_user(AddUser(name="eve", role=Role.READ_ONLY, password=SecretStr(PASSWORD)))
    si = await surface.connect("eve")
    await surface.desk.remove_user("eve")
    with pytest.raises(Exception, match="not authenticated"):
        await asyncio.to_thread(lambda: si.content.rootFolder.name)


async def test_pages_of_its_own(surface: Open) -> None:
    status, _, headers = await surface.get("/")
    assert (status, headers["location"]) == (302, "/mob")
    assert (await surface.get("/health"))[:2] == (200, b"ok\n")
    assert surface.view.ca_file is not None
    assert (await surface.get("/ca.pem"))[1].decode() == Path(surface.view.ca_file).read_text()
    assert (await surface.get("/nothing"))[0] == 404
    assert (await surface.get("/nothing", "POST"))[0] == 404
    assert (await surface.get("/", "DELETE"))[0] == 405


async def test_every_protocol_answers_at_its_path(surface: Open) -> None:
    assert (await surface.get("/sdk/vimServiceVersions.xml"))[0] == 200
    assert (await surface.get("/mob"))[0] == 401
    assert (await surface.get("/api/vcenter/vm"))[0] == 401
    assert (await surface.get("/rest/vcenter/vm"))[0] == 401
    assert (await surface.get("/sdk/vim25/8.0.1.0/ServiceInstance/ServiceInstance/content"))[0] == 200
    assert (await surface.get("/guestFile?token=none"))[0] == 404


async def test_a_body_and_a_head_have_bounds(surface: Open) -> None:
    reader, writer = await surface.stream()
    writer.write(b"POST /sdk HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    assert (await told(reader)).startswith(b"HTTP/1.1 413 ")
    writer.close()
    for head in (
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(20_000)) + b"\r\n",
        b"nonsense\r\n\r\n",
    ):
        reader, writer = await surface.stream()
        writer.write(head)
        answer = await told(reader)
        assert answer.startswith(b"HTTP/1.1 400 ") or answer == b"", answer[:100]
        writer.close()
    assert (await surface.get("/health"))[0] == 200


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"POST /sdk HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nab"])
async def test_who_is_slow_is_cut(surface: Open, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(server_module, "HEAD_S", 0.2)
    monkeypatch.setattr(server_module, "BODY_WINDOW_S", 0.2)
    reader, writer = await surface.stream()
    writer.write(said)
    assert await told(reader) == b""
    writer.close()


async def test_who_is_silent_at_the_handshake_is_cut(surface: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", surface.port)
    assert await told(reader) == b""
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", surface.port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")  # no TLS
    assert b"HTTP" not in await told(reader)
    writer.close()


async def test_small_answers_go_out_at_once(host: Host, surface: Open) -> None:
    _, writer = await surface.stream()
    listener = host.access._listener
    assert isinstance(listener, Surface)
    assert listener._server is not None
    for _ in range(100):
        if listener._server.connections:
            break
        await asyncio.sleep(0.02)
    [connection] = listener._server.connections
    assert connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()


async def test_when_all_connections_are_used_an_idle_one_makes_room(host: Host) -> None:
    async with served(host):
        few = host.settings.model_copy(update={"connections_max": 3})
        host.settings = few
        open_ = Open(host.access, await host.access.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0")))
        idle = [await open_.stream() for _ in range(3)]
        assert (await open_.get("/health"))[0] == 200
        assert await told(idle[0][0]) == b""
        for _, writer in idle:
            writer.close()


async def test_the_end_leaves_nobody_waiting(host: Host, surface: Open) -> None:
    """A client that waits for updates, one that has sent half a request, one that does nothing."""
    si = await surface.connect()

    def wait() -> str:
        collector = si.content.propertyCollector
        spec = client_vmodl.query.PropertyCollector.FilterSpec(
            objectSet=[client_vmodl.query.PropertyCollector.ObjectSpec(obj=si.content.rootFolder)],
            propSet=[
                client_vmodl.query.PropertyCollector.PropertySpec(type=type(si.content.rootFolder), pathSet=["name"])
            ],
        )
        collector.CreateFilter(spec, True)
        first = collector.WaitForUpdatesEx("")
        try:
            collector.WaitForUpdatesEx(
                first.version, client_vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=600)
            )
        except Exception as exc:
            return type(exc).__name__
        return "answered"

    waiting = asyncio.create_task(asyncio.to_thread(wait))
    half, idle = await surface.stream(), await surface.stream()
    half[1].write(b"POST /sdk HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc")
    for _ in range(500):
        if _is_waiting(host):
            break
        await asyncio.sleep(0.02)
    began = time.monotonic()
    await surface.desk.set_vsphere(SetVsphere(on=False))
    assert time.monotonic() - began < 8
    assert await asyncio.wait_for(waiting, 5) in ("HTTPException", "NotAuthenticated", "answered", "RemoteDisconnected")
    await told(half[0])
    assert await told(idle[0]) == b""
    for _, writer in (half, idle):
        writer.close()
    with pytest.raises(ConnectionRefusedError):
        await surface.stream()


def _is_waiting(host: Host) -> bool:
    surface = host.access._listener
    assert isinstance(surface, Surface)
    assert surface._world is not None
    from ramet.vsphere.access.sessions import Sessions

    return any(session.running for session in surface._world.part(Sessions).all())


async def test_sessions_outlive_a_change_of_the_port(surface: Open) -> None:
    si = await surface.connect()
    cookie = si._stub.cookie
    again = Open(surface.desk, await surface.desk.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0")))
    assert again.port != surface.port
    body = b'{"_typeName": "x"}'
    status, _, _ = await again.get("/sdk/vim25/8.0.1.0/SessionManager/SessionManager/Logout", "POST", body)
    assert status == 401
    assert surface.desk.vsphere().sessions == 1
    assert cookie


async def test_a_renewed_certificate_is_shown_to_new_connections(surface: Open) -> None:
    def shown() -> str:
        with (
            socket.create_connection(("127.0.0.1", surface.port)) as raw,
            surface.tls.wrap_socket(raw, server_hostname="localhost") as tls,
        ):
            return ssl.DER_cert_to_PEM_cert(tls.getpeercert(True) or b"")

    before = await asyncio.to_thread(shown)
    assert surface.view.certificate_file is not None
    Path(surface.view.certificate_file).unlink()
    await surface.desk._look()
    assert await asyncio.to_thread(shown) != before


async def test_a_port_that_is_taken_is_told(surface: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConflictError, match="Another program listens"):
            await surface.desk.set_vsphere(SetVsphere(on=True, listen=where))
    assert (await surface.get("/health"))[0] == 200
    with pytest.raises(UsageError, match="no address of this host"):
        await surface.desk.set_vsphere(SetVsphere(on=True, listen="192.0.2.1:8443"))
    assert isinstance(_explained(PermissionError(13, "Permission denied"), "0.0.0.0", 443), PrivilegeError)


def test_nothing_of_the_api_is_loaded_before_somebody_asks() -> None:
    program = (
        "import sys, ramet.host.service, ramet.api.server, ramet.vsphere.switch\n"
        "print([name for name in ('pyVmomi', 'cryptography', 'argon2', 'ramet.vsphere.core') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
