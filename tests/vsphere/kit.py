"""What tests of the surface stand on: records of VMs without guests, and a host to put them in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from pydantic import SecretStr
from pyVim import connect

from ramet.host.service import Host
from ramet.host.store import Put
from ramet.machine.live import LiveMachine
from ramet.model.access import AddUser, Role
from ramet.model.machine import Disk, Machine, Nic, Vm
from ramet.model.units import MIB
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.machine.virtual_machine import VirtualMachine


async def record_vm(host: Host, name: str, *, disk: bool = True, **machine: Any) -> Vm:
    """A VM that is off, known to the host as any other; its disk is an empty layer."""
    if disk and "disks" not in machine:
        layer = await asyncio.to_thread(host.floor.rooms.layers.create_empty, 64 * MIB)
        machine["disks"] = (Disk(id="disk0", layer=layer.id, size_bytes=64 * MIB),)
    machine.setdefault("nics", (Nic(id="net0", network="user"),))
    vm = Vm(machine=Machine(name=name, **machine), created_at=1_700_000_000.0)
    vm = vm.changed(lineage_id=vm.id)
    await host.floor.rooms.book.save(vm)
    host.floor.add(LiveMachine(host.floor.rooms, vm))
    return vm


async def record_vms(host: Host, count: int, prefix: str = "vm") -> list[Vm]:
    """Many at once, without disks: they are all in the host's memory when this returns."""
    machines = [Machine(name=f"{prefix}-{n:05}", nics=(Nic(id="net0"),)) for n in range(count)]
    vms = [Vm(id=host.floor.rooms.book.new_vm_id(), machine=machine) for machine in machines]
    for start in range(0, count, 100):
        batch = vms[start : start + 100]
        entries = [(f"vm/{vm.id}", vm.model_dump(mode="json")) for vm in batch]
        names = [(f"vm-name/{vm.name}", {"id": vm.id}) for vm in batch]
        await host.floor.inventory.store.put_all([Put(key, value) for key, value in (*entries, *names)])
        for vm in batch:
            host.floor.add(LiveMachine(host.floor.rooms, vm))
        await asyncio.sleep(0)  # the inventory follows
    last = vms[-1].id if vms else None
    for _ in range(1000):
        if last is None or host.floor.inventory.get_vm(last) is not None:
            break
        await asyncio.sleep(0.01)
    return vms


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """For what nobody tells of."""
    for _ in range(1000):
        if await true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come true")


async def seen(world: World, vm: Vm) -> VirtualMachine:
    """Its object, once the world has it."""
    while True:
        stamp, mo = world.updates.stamp, world.get(ids.vm_moid(vm.id))
        if isinstance(mo, VirtualMachine):
            return mo
        assert await world.updates.wait(stamp, 10.0), f"{vm.name} does not appear"


@dataclass
class TestSession:
    """Somebody who may do anything."""

    __test__ = False
    key: str = "52000000-0000-0000-0000-000000000001"
    secret: str = "secret"
    user_name: str = "root"
    is_over: bool = False
    objects: dict[str, Mo] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    def may(self, privilege: str) -> bool:
        return True


def root_call() -> Call:
    return Call(TestSession())


# -- behind a port -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surface:
    """A server of SOAP, and who may use it. Clients that `connect` made are hung up at the end."""

    world: World
    port: int
    user: str = "administrator"
    password: str = "correct horse"
    clients: list[Any] = field(default_factory=list)

    async def connect(self, user: str | None = None, password: str | None = None) -> Any:
        """pyVmomi's own SmartConnect, in a thread."""
        login = {"user": user or self.user, "pwd": password or self.password}
        si = await asyncio.to_thread(connect.SmartConnect, protocol="http", host="127.0.0.1", port=self.port, **login)
        self.clients.append(si)
        return si


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[Surface]:
    """The world behind a port, for as long as the block lasts, with one administrator."""
    from ramet.vsphere.wire.endpoint import make_app

    credentials = AddUser(name=Surface.user, role=Role.ADMINISTRATOR, password=SecretStr(Surface.password))
    await world.host.access.add_user(credentials)
    # With its protocol named: asyncio sets TCP_NODELAY on no other, and every answer would wait for an ACK, 40 ms.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    config = uvicorn.Config(
        make_app(world), lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=1, timeout_keep_alive=900
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[sock]), name="test server")
    surface = Surface(world, sock.getsockname()[1])
    try:
        yield surface
    finally:
        for si in surface.clients:
            si._stub.DropConnections()
        server.should_exit = True
        await running
        sock.close()
