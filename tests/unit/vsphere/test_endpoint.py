"""SOAP over HTTP, without a socket: bodies, cookies, what is answered with what, and clients that go."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any
from xml.etree import ElementTree

import pytest

from ramet.vsphere.core.world import World
from ramet.vsphere.wire.endpoint import MAX_ANONYMOUS_BYTES, make_app
from tests.unit.vsphere.soap_kit import FakeSession, make_world, sessions_of
from tests.unit.vsphere.test_soap_request import BILLION_LAUGHS, envelope

CURRENT_TIME = envelope('<CurrentTime><_this type="ServiceInstance">ServiceInstance</_this></CurrentTime>')
CONTENT = envelope(
    '<RetrieveServiceContent><_this type="ServiceInstance">ServiceInstance</_this></RetrieveServiceContent>'
)
LOGIN = envelope(
    '<Login><_this type="SessionManager">SessionManager</_this><userName>ann</userName><password>{}</password></Login>'
)
WAIT = envelope('<WaitForUpdatesEx><_this type="PropertyCollector">propertyCollector</_this></WaitForUpdatesEx>')


class Exchange:
    """One request to the app: its body in pieces, and the client that may go."""

    def __init__(
        self, world: World, body: bytes = b"", method: str = "POST", path: str = "/sdk", **headers: str
    ) -> None:
        self.app = make_app(world)
        self.scope = {
            "type": "http",
            "method": method,
            "path": path.partition("?")[0],
            "query_string": path.partition("?")[2].encode(),
            "scheme": "https",
            "client": ("10.0.0.9", 5),
            "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()],
        }
        self.pieces = [body[i : i + 5000] for i in range(0, len(body), 5000)] or [b""]
        self.gone = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if self.pieces:
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self) -> Exchange:
        await self.app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def fault(self) -> str:
        """The type of the fault that is the answer."""
        assert self.status == 500
        detail = ElementTree.fromstring(self.body).find(".//detail/*")
        assert detail is not None
        return detail.attrib["{http://www.w3.org/2001/XMLSchema-instance}type"]


async def ask(world: World, body: bytes = b"", method: str = "POST", path: str = "/sdk", **headers: str) -> Exchange:
    return await Exchange(world, body, method, path, **headers).run()


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def session(world: World) -> FakeSession:
    return sessions_of(world).login("ann")


async def test_a_call_and_its_answer(world: World) -> None:
    answer = await ask(world, CONTENT)
    assert answer.status == 200
    assert answer.headers[b"content-type"] == b"text/xml; charset=utf-8"
    assert int(answer.headers[b"content-length"]) == len(answer.body)
    body = ElementTree.fromstring(answer.body)[0][0]
    assert body.tag == "{urn:vim25}RetrieveServiceContentResponse"
    assert b"set-cookie" not in answer.headers


async def test_a_login_gives_a_cookie_that_may_be_replayed_in_any_way(world: World) -> None:
    answer = await ask(world, LOGIN.replace(b"{}", b"right"))
    cookie = answer.headers[b"set-cookie"].decode()
    assert cookie == 'vmware_soap_session="secret-1"; Path=/; HttpOnly; Secure'
    assert (await ask(world, CURRENT_TIME)).fault == "NotAuthenticated"
    for replayed in (
        cookie,
        "vmware_soap_session=secret-1",
        'other=1; vmware_soap_session="secret-1"',
        'vmware_soap_session="stale"; Path=/; vmware_soap_session="secret-1"',
        "a=b,vmware_soap_session=secret-1,c=d",
    ):
        assert (await ask(world, CURRENT_TIME, cookie=replayed)).status == 200
    assert (await ask(world, CURRENT_TIME, vmware_api_session_id="secret-1")).status == 200
    header = b"<e:Header><vcSessionCookie>secret-1</vcSessionCookie></e:Header><e:Body>"
    assert (await ask(world, CURRENT_TIME.replace(b"<e:Body>", header))).status == 200
    assert (await ask(world, CURRENT_TIME, cookie="vmware_soap_session=guess")).fault == "NotAuthenticated"


async def test_a_login_that_fails_gives_none(world: World) -> None:
    answer = await ask(world, LOGIN.replace(b"{}", b"wrong"))
    assert answer.fault == "InvalidLogin"
    assert b"set-cookie" not in answer.headers


async def test_packed_bodies(world: World) -> None:
    assert (await ask(world, gzip.compress(CONTENT), content_encoding="gzip")).status == 200
    assert (await ask(world, zlib.compress(CONTENT), content_encoding="deflate")).status == 200
    assert (await ask(world, CONTENT, content_encoding="gzip")).fault == "InvalidRequest"
    assert (await ask(world, CONTENT, content_encoding="br")).fault == "InvalidRequest"
    bomb = gzip.compress(b" " * (64 << 20))
    assert (await ask(world, bomb, content_encoding="gzip")).fault == "InvalidRequest"


async def test_bodies_are_bounded_and_smaller_before_a_login(world: World, session: FakeSession) -> None:
    padded = CURRENT_TIME.replace(
        b"<e:Body>", b"<e:Header><a>" + b"x" * MAX_ANONYMOUS_BYTES + b"</a></e:Header><e:Body>"
    )
    assert (await ask(world, padded)).fault == "InvalidRequest"
    assert (await ask(world, padded, cookie="vmware_soap_session=secret-1")).status == 200
    large = padded.replace(b"x", b"x" * 20)
    exchange = await ask(world, large, cookie="vmware_soap_session=secret-1")
    assert exchange.fault == "InvalidRequest"
    assert exchange.pieces  # the rest was not read


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "InvalidRequest"),
        (BILLION_LAUGHS.encode(), "InvalidRequest"),
        (envelope('<Nothing><_this type="Folder">f</_this></Nothing>'), "MethodNotFound"),
        (
            envelope('<PowerOnVM_Task><_this type="VirtualMachine">vm-99</_this></PowerOnVM_Task>'),
            "ManagedObjectNotFound",
        ),
        (envelope('<PowerOnVM_Task><_this type="Folder">group-v3</_this></PowerOnVM_Task>'), "MethodNotFound"),
        (envelope('<ResetVM_Task><_this type="VirtualMachine">vm-1</_this></ResetVM_Task>'), "NotSupported"),
        (envelope('<AcquireTicket><_this type="VirtualMachine">vm-1</_this></AcquireTicket>'), "InvalidArgument"),
        (
            envelope(
                '<AcquireTicket><_this type="VirtualMachine">vm-1</_this><ticketType>x</ticketType></AcquireTicket>'
            ),
            "SystemError",
        ),
    ],
)
async def test_faults(world: World, session: FakeSession, body: bytes, expected: str) -> None:
    answer = await ask(world, body, cookie=f"vmware_soap_session={session.secret}")
    assert answer.fault == expected
    assert b"Traceback" not in answer.body
    assert b"an inside" not in answer.body
    found = ElementTree.fromstring(answer.body)[0][0]
    assert [one.tag for one in found] == ["faultcode", "faultstring", "detail"]
    assert found.findtext("faultstring")


async def test_a_permission_is_asked_for(world: World, session: FakeSession) -> None:
    session.denied = frozenset({"VirtualMachine.Interact.PowerOn"})
    body = envelope('<PowerOnVM_Task><_this type="VirtualMachine">vm-1</_this></PowerOnVM_Task>')
    answer = await ask(world, body, cookie=f"vmware_soap_session={session.secret}")
    assert answer.fault == "NoPermission"
    assert b"VirtualMachine.Interact.PowerOn" in answer.body


@pytest.mark.parametrize(
    ("action", "has_it"),
    [("urn:vim25/8.0.3.0", True), ('"urn:vim25/6.5"', False), ("urn:vim25/99.0", True), ("", True)],
)
async def test_a_client_gets_what_its_version_has(
    world: World, session: FakeSession, action: str, has_it: bool
) -> None:
    body = envelope('<Fetch><_this type="VirtualMachine">vm-1</_this><prop>runtime</prop></Fetch>')
    answer = await ask(world, body, cookie=f"vmware_soap_session={session.secret}", soapaction=action)
    assert (b"instantCloneFrozen" in answer.body) is has_it


@pytest.mark.parametrize(
    ("method", "path", "status", "inside"),
    [
        ("GET", "/sdk/vimServiceVersions.xml", 200, b"<priorVersions>"),
        ("HEAD", "/sdk/vimServiceVersions.xml", 200, b""),
        ("GET", "/sdk/vimService.wsdl", 200, b'location="https://here:9/sdk"'),
        ("GET", "/sdk/vimService?wsdl", 200, b"VimBinding"),
        ("GET", "/sdk", 405, b""),
        ("GET", "/sdk/other", 404, b""),
        ("PUT", "/sdk", 405, b""),
        ("POST", "/sdk/other", 404, b""),
    ],
)
async def test_documents_and_paths(world: World, method: str, path: str, status: int, inside: bytes) -> None:
    answer = await ask(world, b"", method, path, host="here:9")
    assert answer.status == status
    assert inside in answer.body


async def test_a_host_header_cannot_write_into_the_description(world: World) -> None:
    answer = await ask(world, b"", "GET", "/sdk/vimService.wsdl", host='x"/><evil')
    assert b"evil" not in answer.body
    assert b"https://localhost/sdk" in answer.body


@pytest.mark.slow
async def test_the_description_is_made_once(world: World) -> None:
    exchange = Exchange(world, b"", "GET", "/sdk/vim.wsdl")
    first = await exchange.run()
    again = Exchange(world, b"", "GET", "/sdk/vim.wsdl")
    again.app = exchange.app
    assert len((await again.run()).body) == len(first.body) > 1_000_000


# -- clients that go ---------------------------------------------------------------------------------------------------


async def started(world: World, session: FakeSession) -> tuple[Exchange, asyncio.Task[Exchange]]:
    exchange = Exchange(world, WAIT, cookie=f"vmware_soap_session={session.secret}")
    task = asyncio.create_task(exchange.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    return exchange, task


async def test_a_client_that_dies_while_it_waits_leaves_nothing(world: World, session: FakeSession) -> None:
    tasks = asyncio.all_tasks()
    exchange, task = await started(world, session)
    assert world.updates._watches
    exchange.gone.set()
    await asyncio.wait_for(task, 5)
    assert not exchange.sent
    assert not world.updates._watches
    assert asyncio.all_tasks() == tasks


async def test_a_session_that_ends_answers_who_waits_in_it(world: World, session: FakeSession) -> None:
    exchange, task = await started(world, session)
    sessions_of(world).end(session)
    await asyncio.wait_for(task, 5)
    assert exchange.fault == "NotAuthenticated"


async def test_a_server_that_stops_ends_the_wait(world: World, session: FakeSession) -> None:
    exchange, task = await started(world, session)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not exchange.sent
    assert not world.updates._watches


async def test_a_client_that_goes_before_its_body_has_come(world: World) -> None:
    exchange = Exchange(world, CONTENT)
    exchange.gone.set()
    exchange.pieces = []
    assert not (await exchange.run()).sent


async def test_what_does_not_wait_runs_to_its_end_though_its_client_has_gone(
    world: World, session: FakeSession
) -> None:
    body = envelope('<PowerOnVM_Task><_this type="VirtualMachine">vm-1</_this></PowerOnVM_Task>')
    exchange = Exchange(world, body, cookie=f"vmware_soap_session={session.secret}")
    exchange.gone.set()
    await exchange.run()
    assert world.find("vm-1").get_power() == "poweredOn"  # type: ignore[attr-defined]
