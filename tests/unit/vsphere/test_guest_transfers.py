"""Tickets, and files that go to guests and from them through the server."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ramet.model.views import ExecResult
from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.updates import Updates
from ramet.vsphere.guest import scripts
from ramet.vsphere.guest.login import Guest, _Secret
from ramet.vsphere.guest.transfer import MODIFY, QUERY, UNSIZED_BYTES, Transfer, make_app, url_of
from ramet.vsphere.machine.tickets import MOST_EACH, Tickets
from ramet.vsphere.types import vim

FOLDER = b"/var/lib/ramet/transfer-x\n"


def result(exit_code: int, stderr: str = "", stdout: bytes = b"") -> ExecResult:
    encoded = base64.b64encode
    return ExecResult(
        exit_code=exit_code,
        stdout_base64=encoded(stdout).decode(),
        stderr_base64=encoded(stderr.encode()).decode(),
    )


class FakeSession:
    """One that may do what is in `allowed`."""

    def __init__(self, user_name: str = "eve") -> None:
        self.key, self.secret, self.user_name = "key", "secret", user_name
        self.is_over, self.running = False, 0
        self.objects: dict[str, Any] = {}
        self.state: dict[str, Any] = {}
        self.allowed = {QUERY, MODIFY}

    def may(self, privilege: str) -> bool:
        return privilege in self.allowed


class FakeSessions:
    def __init__(self, session: FakeSession, updates: Updates) -> None:
        self.session, self._updates = session, updates

    def find(self, secret: str | None) -> FakeSession | None:
        return self.session if secret == self.session.secret and not self.session.is_over else None

    def enter(self, session: FakeSession) -> None:
        session.running += 1

    def leave(self, session: FakeSession) -> None:
        session.running -= 1

    def end(self) -> None:
        self.session.is_over = True
        self._updates.wake()
        self.session.state.clear()


class FakeHost:
    """Answers what runs in a guest, and remembers it; files that are read in small pieces."""

    def __init__(self, *answers: ExecResult) -> None:
        self.answers, self.asked = list(answers), list[Any]()
        self.files: dict[str, bytes] = {}
        self.reading, self.closed = asyncio.Event(), asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.piece, self.pieces = 4, 0

    async def exec_in_vm(self, vm_id: str, request: Any) -> ExecResult:
        self.asked.append(request)
        return self.answers.pop(0) if self.answers else result(0)

    async def read_file(self, vm_id: str, path: str) -> AsyncGenerator[bytes, None]:
        self.reading.set()
        try:
            for start in range(0, len(self.files[path]), self.piece):
                await self.goes_on.wait()
                self.pieces += 1
                yield self.files[path][start : start + self.piece]
        finally:
            self.closed.set()

    async def write_file(self, vm_id: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        self.files[path] = b"".join([chunk async for chunk in chunks])


class FakeWorld:
    def __init__(self, host: Any) -> None:
        self.host, self.updates, self.session = host, Updates(), FakeSession()
        self.sessions = FakeSessions(self.session, self.updates)
        self.parts: dict[type[Any], Any] = {Tickets: Tickets(), Sessions: self.sessions}

    def part(self, kind: type[Any]) -> Any:
        return self.parts[kind]


class Client:
    """One request to the transfers' app, and what it answered."""

    def __init__(self, world: FakeWorld) -> None:
        self.world = world
        self.sent: list[Mapping[str, Any]] = []
        self.leaves = asyncio.Event()

    async def ask(self, method: str, url: str, *pieces: bytes, ends: bool = True) -> tuple[int, bytes]:
        left = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        if ends:
            left.append({"type": "http.request", "body": b"", "more_body": False})
        self.sent.clear()

        async def receive() -> Mapping[str, Any]:
            if left:
                return left.pop(0)
            await self.leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": method, "query_string": url.partition("?")[2].encode()}
        async with asyncio.timeout(10):
            await make_app(self.world)(scope, receive, send)  # type: ignore[arg-type]
        return self.status, b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def is_whole(self) -> bool:
        return not self.sent[-1].get("more_body", False)


def transfer(host: Any, user: str = "root", size: int = 8, path: str = "/etc/x") -> tuple[FakeWorld, Transfer]:
    world = FakeWorld(host)
    mo: Any = SimpleNamespace(moid="vm-10", world=world, ref=vim.VirtualMachine("vm-10"))
    guest = Guest(mo, "00000000000a", user, _Secret("s"))
    return world, Transfer(guest, path, size, ("", "640", "", ""))


def address(world: FakeWorld, purpose: str, what: Transfer) -> str:
    return url_of(world, world.part(Tickets).issue(purpose, what, world.session))  # type: ignore[arg-type]


# -- tickets -----------------------------------------------------------------------------------------------------------


def test_a_ticket_opens_one_thing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tickets, now, session = Tickets(), [0.0], FakeSession()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    secret = tickets.issue("upload", "it", session)
    assert tickets.redeem("download", secret) is None
    ticket = tickets.redeem("upload", secret)
    assert ticket is not None
    assert (ticket.what, ticket.session) == ("it", session)
    assert tickets.redeem("upload", secret) is None
    late = tickets.issue("upload", "it", session)
    now[0] += 61.0
    assert tickets.redeem("upload", late) is None


def test_a_user_with_too_many_tickets_loses_the_oldest_and_nobody_else_does() -> None:
    tickets, greedy, other = Tickets(), [FakeSession(), FakeSession()], FakeSession("mal")
    theirs = tickets.issue("upload", "it", other)
    secrets = [tickets.issue("upload", "it", greedy[n % 2]) for n in range(MOST_EACH)]
    assert tickets.redeem("upload", secrets.pop(0)) is not None
    secrets.append(tickets.issue("upload", "it", greedy[0]))  # in the place of the one that was used
    secrets.append(tickets.issue("upload", "it", greedy[0]))
    assert tickets.redeem("upload", secrets.pop(0)) is None
    assert all(tickets.redeem("upload", one) is not None for one in secrets)
    assert tickets.redeem("upload", theirs) is not None


def test_tickets_and_what_they_open_end_with_their_session() -> None:
    tickets, gone, open_ = Tickets(), FakeSession(), FakeSession()
    secrets = [tickets.issue("upload", "it", gone) for _ in range(MOST_EACH - 1)]
    kept = tickets.issue("upload", "it", open_)
    gone.is_over = True
    assert tickets.redeem("upload", secrets.pop()) is None
    gone.state.clear()  # as the session's end does: nothing else holds a guest's password
    assert not gone.state
    assert tickets.redeem("upload", secrets.pop()) is None
    tickets.issue("upload", "it", open_)  # there is room again
    assert tickets.redeem("upload", kept) is not None


# -- there and back ----------------------------------------------------------------------------------------------------


async def test_a_file_goes_out_in_pieces_and_once() -> None:
    host = FakeHost()
    host.files["/etc/x"] = b"12345678"
    world, what = transfer(host)
    url = address(world, "download", what)
    client = Client(world)
    assert await client.ask("GET", url) == (200, b"12345678")
    assert len(client.sent) > 3
    assert client.is_whole
    assert host.closed.is_set()
    assert (await client.ask("GET", url))[0] == 404
    assert (await client.ask("DELETE", url))[0] == 405


async def test_a_file_comes_in_with_its_attributes() -> None:
    host = FakeHost()
    world, what = transfer(host)
    assert await Client(world).ask("PUT", address(world, "upload", what), b"1234", b"5678") == (200, b"")
    assert host.files == {"/etc/x": b"12345678"}
    assert host.asked[-1].argv[-5:] == ("/etc/x", "", "640", "", "")


@pytest.mark.parametrize("pieces", [(b"123",), (b"123456789",)])
async def test_more_or_less_than_was_said_is_refused(pieces: tuple[bytes, ...]) -> None:
    world, what = transfer(FakeHost())
    status, said = await Client(world).ask("PUT", address(world, "upload", what), *pieces)
    assert (status, b"than the client had said" in said) == (500, True)


async def test_no_more_is_read_than_was_said_however_a_file_grows() -> None:
    host = FakeHost()
    host.files["/etc/x"] = b"x" * 4000
    world, what = transfer(host, size=10)
    assert await Client(world).ask("GET", address(world, "download", what)) == (200, b"x" * 10)
    assert host.pieces == 3
    assert host.closed.is_set()


async def test_a_file_without_a_size_is_read_as_far_as_is_decent() -> None:
    host = FakeHost()
    host.files["/etc/x"], host.piece = b"x" * (UNSIZED_BYTES + 5), 100_000
    world, what = transfer(host, size=0)
    status, said = await Client(world).ask("GET", address(world, "download", what))
    assert (status, len(said)) == (200, UNSIZED_BYTES)


async def test_what_is_no_file_any_more_is_not_opened() -> None:
    """Opening a pipe would block the agent."""
    host = FakeHost(result(1, "/etc/x: Not a regular file"))
    world, what = transfer(host)
    status, said = await Client(world).ask("GET", address(world, "download", what))
    assert (status, b"Not a regular file" in said) == (500, True)
    assert not host.reading.is_set()


# -- those who go ------------------------------------------------------------------------------------------------------


async def test_a_client_that_goes_away_leaves_nothing_of_another_user() -> None:
    host = FakeHost(result(0, stdout=FOLDER))
    world, what = transfer(host, "eve")
    client = Client(world)
    client.leaves.set()
    await client.ask("PUT", address(world, "upload", what), b"12", ends=False)
    assert host.asked[-1].argv[-3:] == (scripts.ENVIRON + scripts.RELEASE, "sh", FOLDER.decode().strip())


async def test_nothing_is_read_for_a_client_that_has_gone() -> None:
    host = FakeHost()
    host.files["/etc/x"] = b"12345678"
    host.goes_on.clear()
    world, what = transfer(host)
    client = Client(world)
    asking = asyncio.create_task(client.ask("GET", address(world, "download", what)))
    await host.reading.wait()
    client.leaves.set()
    await host.closed.wait()
    await asking
    assert host.pieces == 0
    assert world.session.running == 0


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_an_address_ends_with_its_session(method: str) -> None:
    host = FakeHost()
    host.files["/etc/x"] = b"12345678"
    world, what = transfer(host)
    url = address(world, "download" if method == "GET" else "upload", what)
    world.sessions.end()
    assert (await Client(world).ask(method, url, b"12345678"))[0] == 404
    assert not host.asked


async def test_an_address_ends_with_a_session_that_has_expired_unnoticed() -> None:
    world, what = transfer(FakeHost())
    url = address(world, "upload", what)
    world.sessions.session = FakeSession()
    world.sessions.session.secret = "another's"
    assert (await Client(world).ask("PUT", url, b"12345678"))[0] == 404


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_user_who_may_no_longer_is_refused(method: str) -> None:
    world, what = transfer(FakeHost())
    url = address(world, "download" if method == "GET" else "upload", what)
    world.session.allowed.remove(QUERY if method == "GET" else MODIFY)
    assert (await Client(world).ask(method, url, b"12345678"))[0] == 404


async def test_what_is_on_its_way_ends_with_its_session() -> None:
    host = FakeHost()
    host.files["/etc/x"] = b"12345678"
    world, what = transfer(host)
    down, up = Client(world), Client(world)
    uploading = asyncio.create_task(up.ask("PUT", address(world, "upload", what), b"1234", ends=False))
    host.goes_on.clear()
    downloading = asyncio.create_task(down.ask("GET", address(world, "download", what)))
    await host.reading.wait()
    assert world.session.running == 2  # it does not grow old
    world.sessions.end()
    for status, said in await asyncio.gather(downloading, uploading):
        assert (status, said) == (500, b"The session has ended.")
    assert world.session.running == 0


async def test_a_body_that_was_begun_is_not_ended_when_the_session_is() -> None:
    host = FakeHost()
    host.files["/etc/x"] = b"12345678"
    world, what = transfer(host)
    client = Client(world)
    begun = host.reading

    class Slow(FakeHost):
        async def read_file(self, vm_id: str, path: str) -> AsyncGenerator[bytes, None]:
            yield b"1234"
            begun.set()
            await asyncio.Event().wait()

    world.host = Slow()
    asking = asyncio.create_task(client.ask("GET", address(world, "download", what)))
    await begun.wait()
    world.sessions.end()
    assert await asking == (200, b"1234")
    assert not client.is_whole


# -- other users than root ---------------------------------------------------------------------------------------------


async def test_what_another_user_may_not_read_is_a_fault_before_the_body() -> None:
    denied = result(1, "head: can't open '/etc/x': Permission denied")
    host = FakeHost(result(0, stdout=FOLDER), result(0), denied)
    world, what = transfer(host, "eve")
    status, said = await Client(world).ask("GET", address(world, "download", what))
    assert (status, b"Permission denied" in said) == (500, True)


async def test_a_guest_that_names_no_folder_is_not_believed() -> None:
    host = FakeHost(result(0, stdout=b"/etc\n"))
    world, what = transfer(host, "eve")
    status, _ = await Client(world).ask("PUT", address(world, "upload", what), b"12345678")
    assert status == 500
    assert not host.files
    assert len(host.asked) == 1


class RealHost(FakeHost):
    """The scripts run on this machine: as root, and what LOGIN lets in as somebody else. `mal` runs before a file is
    opened by root, as whom the agent works, and is that somebody too."""

    def __init__(self, place: Path, mal: str) -> None:
        super().__init__()
        self._place, self._mal = place, mal

    async def exec_in_vm(self, vm_id: str, request: Any) -> ExecResult:
        argv = [part.replace("/var/lib/ramet", str(self._place / "lib")) for part in request.argv]
        if argv[2] == scripts.LOGIN:
            return await self._run(argv[5:], user=argv[4])
        return await self._run(argv)

    async def _run(self, argv: list[str], **more: Any) -> ExecResult:
        pipe = asyncio.subprocess.PIPE
        ran = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe, extra_groups=[], **more)
        output, said = await asyncio.wait_for(ran.communicate(), 10)
        return result(ran.returncode or 0, said.decode(), output)

    async def _swap(self, path: str) -> None:
        await self._run(["/bin/sh", "-c", self._mal, str(self._place / "secret"), path], user="nobody")

    async def read_file(self, vm_id: str, path: str) -> AsyncGenerator[bytes, None]:
        await self._swap(path)
        yield await asyncio.to_thread(Path(path).read_bytes)

    async def write_file(self, vm_id: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        await self._swap(path)
        content = b"".join([chunk async for chunk in chunks])
        await asyncio.to_thread(Path(path).write_bytes, content)


@pytest.fixture
def place() -> Iterator[Path]:
    """Where somebody else may look around, and in one folder of which they may write."""
    path = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    path.chmod(0o755)
    (path / "theirs").mkdir(mode=0o777)
    (path / "theirs").chmod(0o777)
    (path / "secret").write_bytes(b"of root")
    (path / "secret").chmod(0o600)
    yield path
    shutil.rmtree(path)


SWAP = """
cd "${1%/*}"
rm -f "$1"
mv "$1" "$1.gone"
ln -s "$0" "$1"
ln "$0" "$1"
mv "${1%/*}" "$0.gone"
"""
"""$0: the file that they would like to read and write, $1: the one that root opens next."""


@pytest.mark.skipif(os.geteuid() != 0, reason="it needs two users")
async def test_a_link_in_the_place_of_what_is_held_leads_root_nowhere(place: Path) -> None:
    host = RealHost(place, SWAP)
    target = place / "theirs" / "file"
    world, what = transfer(host, "nobody", 7, str(target))
    what = Transfer(what.guest, what.path, what.size)
    assert await Client(world).ask("PUT", address(world, "upload", what), b"of them") == (200, b"")
    assert (place / "secret").read_bytes() == b"of root"
    assert target.read_bytes() == b"of them"
    assert target.owner() == "nobody"
    assert await Client(world).ask("GET", address(world, "download", what)) == (200, b"of them")
    assert [*(place / "lib").iterdir()] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="it needs two users")
async def test_another_user_reads_and_writes_by_own_rights(place: Path) -> None:
    for method, purpose in (("PUT", "upload"), ("GET", "download")):
        world, what = transfer(RealHost(place, ":"), "nobody", 7, str(place / "secret"))
        status, said = await Client(world).ask(method, address(world, purpose, what), b"of them")
        assert (status, b"Permission denied" in said) == (500, True)
    assert (place / "secret").read_bytes() == b"of root"
    assert [*(place / "lib").iterdir()] == []


# -- root --------------------------------------------------------------------------------------------------------------


class AgentsHost(RealHost):
    """It makes files as the guest agent does, and opens nothing that would block it."""

    def __init__(self, place: Path) -> None:
        super().__init__(place, ":")
        self.modes: list[int] = []

    async def write_file(self, vm_id: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        target = Path(path)
        if not target.exists():
            target.touch()
            target.chmod(0o666)
        assert target.is_file()
        self.modes.append(stat.S_IMODE(target.stat().st_mode))
        target.write_bytes(b"".join([chunk async for chunk in chunks]))


@pytest.mark.skipif(os.geteuid() != 0, reason="it runs as root")
@pytest.mark.parametrize(("wanted", "meanwhile", "then"), [("", 0o644, 0o644), ("640", 0o600, 0o640)])
async def test_a_new_file_of_root_is_not_everybodys(place: Path, wanted: str, meanwhile: int, then: int) -> None:
    host, target = AgentsHost(place), place / "new"
    world, what = transfer(host, "root", 4)
    what = Transfer(what.guest, str(target), 4, ("", wanted, "", ""))
    assert await Client(world).ask("PUT", address(world, "upload", what), b"1234") == (200, b"")
    assert host.modes == [meanwhile]
    assert stat.S_IMODE(target.stat().st_mode) == then
    assert target.read_bytes() == b"1234"


@pytest.mark.skipif(os.geteuid() != 0, reason="it runs as root")
async def test_a_file_of_root_that_is_there_keeps_its_mode(place: Path) -> None:
    host = AgentsHost(place)
    world, what = transfer(host, "root", 4)
    what = Transfer(what.guest, str(place / "secret"), 4)
    assert await Client(world).ask("PUT", address(world, "upload", what), b"1234") == (200, b"")
    assert host.modes == [0o600]


@pytest.mark.skipif(os.geteuid() != 0, reason="it runs as root")
@pytest.mark.parametrize("kind", ["pipe", "file"])
async def test_what_was_put_there_since_the_address_was_asked_for_is_not_opened(place: Path, kind: str) -> None:
    host, target = AgentsHost(place), place / "theirs" / "x"
    world, what = transfer(host, "root", 4)
    what = Transfer(what.guest, str(target), 4, overwrite=False)
    url = address(world, "upload", what)
    if kind == "pipe":
        os.mkfifo(target)
    else:
        target.write_bytes(b"of them")
    status, said = await Client(world).ask("PUT", url, b"1234")
    assert (status, (b"Not a regular file" if kind == "pipe" else b"File exists") in said) == (500, True)
    assert host.modes == []
