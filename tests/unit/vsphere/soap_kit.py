"""A small world for the protocols' tests: fake inventory, fake sessions, and the SOAP endpoint on a loopback socket."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import uvicorn
from pyVim.connect import Disconnect, SmartConnect

from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.collector import collector
from ramet.vsphere.core.calls import CURRENT, Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.core.world import World
from ramet.vsphere.service import instance
from ramet.vsphere.types import NEWEST, make, vim
from ramet.vsphere.views import search, views
from ramet.vsphere.wire.endpoint import App, make_app

PASSWORD = "right"
PC = vim.ServiceInstanceContent._GetPropertyInfo("propertyCollector").type


@dataclass(eq=False)
class FakeSession:
    key: str = "key"
    secret: str = "secret"
    user_name: str = "ann"
    is_over: bool = False
    denied: frozenset[str] = frozenset()
    objects: dict[str, Mo] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    def may(self, privilege: str) -> bool:
        return privilege not in self.denied


class FakeSessions:
    def __init__(self, world: World) -> None:
        self._world = world
        self._numbers = itertools.count(1)
        self.open: dict[str, FakeSession] = {}

    def login(self, user_name: str) -> FakeSession:
        number = next(self._numbers)
        made = FakeSession(f"key-{number}", f"secret-{number}", user_name)
        self.open[made.secret] = made
        return made

    def find(self, secret: str | None) -> FakeSession | None:
        return self.open.get(secret or "")

    def end(self, session: FakeSession) -> None:
        self.open.pop(session.secret, None)
        session.is_over = True
        self._world.updates.wake()
        session.objects.clear()
        session.state.clear()


def described(session: FakeSession) -> Any:
    now = datetime.now(UTC)
    return vim.UserSession(
        key=session.key,
        userName=session.user_name,
        fullName=session.user_name,
        loginTime=now,
        lastActiveTime=now,
        locale="en",
        messageLocale="en",
    )


class FakeSessionManager(Mo):
    wire = vim.SessionManager

    @prop("currentSession")
    def current(self) -> Any:
        call = CURRENT.get()
        return described(cast("FakeSession", call.session)) if call and call.session else None

    @operation("Login", anonymous=True)
    async def login(self, call: Call, userName: str, password: str, locale: str | None = None) -> Any:
        if password != PASSWORD:
            raise vim.fault.InvalidLogin(msg="Cannot complete login.")
        session = sessions_of(self.world).login(userName)
        call.reply.session = session
        return described(session)

    @operation("Logout")
    async def logout(self, call: Call) -> None:
        sessions_of(self.world).end(cast("FakeSession", call.session))


class FakeEntity(Mo):
    def __init__(self, world: World, moid: str, name: str, parent: str | None = None) -> None:
        super().__init__(world, moid)
        self.name = name
        self.parent_moid = parent

    @prop("name")
    def get_name(self) -> str:
        return self.name

    @prop("parent")
    def get_parent(self) -> Any:
        return self.world.ref(self.parent_moid) if self.parent_moid else None


class FakeFolder(FakeEntity):
    wire = vim.Folder

    @prop("childEntity")
    def get_children(self) -> list[Any]:
        there = self.world.of_kind(vim.ManagedEntity)
        return [mo.ref for mo in there if isinstance(mo, FakeEntity) and mo.parent_moid == self.moid]


class FakeDatacenter(FakeEntity):
    wire = vim.Datacenter

    @prop("vmFolder")
    def get_vm_folder(self) -> Any:
        return self.world.ref("group-v3")

    @prop("hostFolder")
    def get_host_folder(self) -> Any:
        return self.world.ref("group-h4")


class FakeVm(FakeEntity):
    wire = vim.VirtualMachine

    def __init__(self, world: World, moid: str, name: str, parent: str = "group-v3") -> None:
        super().__init__(world, moid, name, parent)
        self.power = "poweredOff"
        self.address: str | None = None
        self.reads = 0
        self.devices: list[Any] = []

    @prop("runtime.powerState")
    def get_power(self) -> str:
        self.reads += 1
        return self.power

    @prop("runtime")
    def get_runtime(self) -> Any:
        return vim.vm.RuntimeInfo(powerState=self.power, connectionState="connected", instantCloneFrozen=False)

    @prop("guest.ipAddress")
    def get_address(self) -> str | None:
        return self.address

    @prop("config.uuid")
    def get_uuid(self) -> str:
        return f"4200dead-0000-4000-8000-{int(self.moid[3:]):012x}"

    @prop("config.hardware.device")
    def get_devices(self) -> list[Any]:
        return self.devices

    @prop("config.annotation")
    def get_broken(self) -> str:
        raise ValueError("a bug")

    @operation("PowerOnVM_Task")
    async def power_on(self, call: Call, host: Any = None) -> Any:
        self.set_power("poweredOn")
        return vim.Task("task-1")

    @operation("AcquireTicket")
    async def bug(self, call: Call, ticketType: str) -> Any:
        raise KeyError("an inside")

    def set_power(self, power: str) -> None:
        self.power = power
        self.world.updates.touch(self.moid)


class FakeTask(Mo):
    wire = vim.Task

    def __init__(self, world: World, moid: str) -> None:
        super().__init__(world, moid)
        now = datetime.now(UTC)
        self.info = vim.TaskInfo(
            key=moid,
            task=self.ref,
            name=vim.VirtualMachine.InstantClone,
            descriptionId="VirtualMachine.instantClone",
            state="running",
            cancelled=False,
            cancelable=True,
            reason=vim.TaskReasonUser(userName="ann"),
            queueTime=now,
            progress=0,
            eventChainId=1,
        )

    @prop("info")
    def get_info(self) -> Any:
        return self.info

    def set(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self.info, name, value)
        self.world.updates.touch(self.moid)


def sessions_of(world: World) -> FakeSessions:
    return cast("FakeSessions", world.parts[Sessions])


def make_world(vms: int = 3) -> World:
    world = World(cast("Any", None), cast("Any", None))
    world.parts[Sessions] = FakeSessions(world)
    for objects in (instance.objects, collector.objects, views.objects, search.objects):
        for mo in objects(world):
            world.add(mo)
    world.add(FakeSessionManager(world, "SessionManager"))
    world.add(FakeFolder(world, "group-d1", "Datacenters"))
    world.add(FakeDatacenter(world, "datacenter-2", "ramet", "group-d1"))
    world.add(FakeFolder(world, "group-v3", "vm", "datacenter-2"))
    world.add(FakeFolder(world, "group-h4", "host", "datacenter-2"))
    for number in range(1, vms + 1):
        world.add(FakeVm(world, f"vm-{number}", f"guest {number}"))
    return world


def vm(world: World, number: int) -> FakeVm:
    found = world.find(f"vm-{number}")
    assert isinstance(found, FakeVm)
    return found


def call_of(world: World, session: FakeSession | None = None, version: str = NEWEST) -> Call:
    return Call(session or sessions_of(world).login("ann"), version)


def property_spec(kind: Any, *paths: str, all: bool = False) -> Any:
    return PC.PropertySpec(type=kind, pathSet=list(paths), all=all)


def filter_spec(objects: Any, *properties: Any, **more: Any) -> Any:
    specs = [one if isinstance(one, PC.ObjectSpec) else PC.ObjectSpec(obj=one) for one in objects]
    inside = {"objectSet": PC.ObjectSpec.Array(specs), "propSet": PC.PropertySpec.Array(properties)}
    return make(PC.FilterSpec, **inside, **more)


def view_spec(view: Any, *properties: Any) -> Any:
    step = PC.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    return filter_spec([PC.ObjectSpec(obj=view, skip=True, selectSet=[step])], *properties)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[int]:
    """The port on which it answers, without TLS."""
    config = uvicorn.Config(cast("Any", app), host="127.0.0.1", port=0, lifespan="off", log_config=None)
    config.timeout_graceful_shutdown, config.timeout_keep_alive, config.access_log = 1, 300, False
    server = _Server(config)
    running = asyncio.create_task(server.serve())
    await server.ready.wait()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def client_of(world: World) -> AsyncIterator[Any]:
    """An unmodified pyVmomi 9 that has logged in. It blocks: use it in threads."""
    async with serving(make_app(world)) as port:
        service = await asyncio.to_thread(connect, port)
        try:
            yield service
        finally:
            await asyncio.to_thread(Disconnect, service)


async def someone_waits(world: World) -> None:
    """Until a client waits for updates."""
    async with asyncio.timeout(10):
        for _ in range(5000):
            if world.updates._watches:
                return
            await asyncio.sleep(0.002)


def connect(port: int, password: str = PASSWORD) -> Any:
    return SmartConnect(protocol="http", host="127.0.0.1", port=port, user="ann", pwd=password)
