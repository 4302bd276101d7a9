"""Reaching into guests: commands and files by the guest agent, addresses, and descriptors for consoles and ports."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping
from ipaddress import IPv4Address

from ramet.errors import GuestError, NotFoundError, RametError, StateError, UnsupportedError, UsageError
from ramet.guest.agent import ExecOutcome
from ramet.guest.tools_install import install_tools
from ramet.host.floor import Floor
from ramet.host.rotate import read_tail
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.machine.live import LiveMachine
from ramet.model.host import Task
from ramet.model.machine import Display, Nic, VmState
from ramet.model.requests import Exec
from ramet.model.views import ExecResult
from ramet.network.addresses import host_range
from ramet.network.fences import INSIDE_CIDR

CONNECT_TIMEOUT_S = 10.0


class GuestDesk:
    """What callers do inside guests, and through their wires."""

    def __init__(self, floor: Floor, tasks: TaskManager) -> None:
        self._floor = floor
        self._tasks = tasks

    async def exec(self, ref: str, request: Exec) -> ExecResult:
        agent = self._floor.find(ref).agent
        stdin = base64.b64decode(request.stdin_base64 or "")
        return _result(await agent.exec(request.argv, stdin=stdin, env=request.env, timeout_s=request.timeout_s))

    async def spawn(self, ref: str, request: Exec) -> int:
        """Start a program that runs on when this returns; its process id in the guest. `timeout_s` is not heeded."""
        stdin = base64.b64decode(request.stdin_base64 or "")
        return await self._floor.find(ref).agent.spawn(request.argv, stdin=stdin, env=request.env)

    async def ended(self, ref: str, pid: int) -> ExecResult | None:
        """How a program that `spawn` started ended; None while it runs. The agent tells it once, and forgets it."""
        outcome = await self._floor.find(ref).agent.ended(pid)
        return None if outcome is None else _result(outcome)

    async def wait_agent(self, ref: str, timeout_s: float) -> None:
        """Until the guest agent answers, as a guest does that has booted. DeadlineError when it does not."""
        await self._floor.find(ref).agent.ping(timeout_s=timeout_s)

    async def read_file(self, ref: str, path: str) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._floor.find(ref).agent.read_stream(path)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def write_file(self, ref: str, path: str, chunks: AsyncIterator[bytes], mode: int | None) -> None:
        await self._floor.find(ref).agent.write_file(path, chunks, mode=mode)

    async def install_tools(self, ref: str) -> Task:
        live = self._floor.find(ref)
        agent = live.agent

        async def work(_: TaskHandle) -> list[str]:
            return list(await install_tools(agent))

        return await self._tasks.start("tools.install", live.name, work, vm_id=live.id, cancellable=True)

    async def console_log(self, ref: str, max_bytes: int) -> bytes:
        live = self._floor.find(ref)
        return await read_tail(self._floor.rooms.paths.console_log(live.id), max_bytes)

    # -- addresses and streams -------------------------------------------------------------------------------------

    async def addresses(self, live: LiveMachine, leases: Mapping[str, str] | None = None) -> dict[str, tuple[str, ...]]:
        """IPv4 addresses by MAC, from the leases of its port groups; only what is known without asking the guest.

        `leases`: what `leases` answered, for many VMs at once.
        """
        networks, nics = self._floor.rooms.networks, live.vm.machine.nics
        found = networks.addresses_of(live.id, nics, await self.leases() if leases is None else leases)
        return {nic.mac: (found[nic.id],) for nic in nics if nic.id in found}

    async def leases(self) -> dict[str, str]:
        """Address by MAC, of all port groups."""
        networks = self._floor.rooms.networks
        return dict(await networks.addresses()) if networks.privileged else {}

    async def _connect_tcp(self, name: str, address: str, port: int) -> socket.socket:
        try:
            return await self._floor.rooms.networks.connect_tcp(address, port, CONNECT_TIMEOUT_S)
        except OSError as exc:
            # asyncio puts words of its own ("Connect call failed") in the place of the system's.
            reason = os.strerror(exc.errno) if exc.errno else str(exc) or "no answer"
            raise GuestError(
                f"{name!r} ({address}) does not take connections on port {port}: {reason}.",
                hint="Is the service running in the guest?",
            ) from exc

    async def address_of(self, ref: str) -> str:
        """The first IPv4 address at which the daemon's namespace reaches the guest. Raises NotFoundError."""
        live = self._floor.find(ref)
        for addresses in (await self.addresses(live)).values():
            return addresses[0]
        if live.vm.state is VmState.RUNNING and any(nic.connected for nic in live.vm.machine.nics):
            address = await self._ask_guest(live)
            if address is not None:
                return address
        raise NotFoundError(
            f"No address of {live.name!r} is known.",
            hint="It needs a NIC that is connected to a port group, and a guest that has taken an address there.",
        )

    async def _ask_guest(self, live: LiveMachine) -> str | None:
        try:
            interfaces = await live.agent.interfaces()
        except RametError:
            return None
        nics = {nic.mac: nic for nic in live.vm.machine.nics if nic.connected and not nic.is_user_mode}
        for interface in interfaces:
            nic = nics.get(interface.mac or "")
            if nic is not None:
                told = [address.address for address in interface.addresses if address.kind == "ipv4"]
                found = believable(told, self._cidr_of(nic), await self._leased_to_others(nic))
                if found is not None:
                    return await self._outer_address(live, nic, found)
        return None

    async def _leased_to_others(self, nic: Nic) -> set[str]:
        """In a fence, the address is the source's, which has it too."""
        networks = self._floor.rooms.networks
        if nic.network is None or nic.network not in networks.groups or networks.is_fenced(nic):
            return set()
        leases = await networks.leases(nic.network)
        return {lease.address for mac, lease in leases.items() if mac != nic.mac}

    def _cidr_of(self, nic: Nic) -> str | None:
        """Of the network that the guest believes to be in."""
        networks = self._floor.rooms.networks
        if networks.is_fenced(nic):
            return nic.inside.cidr if nic.inside is not None else INSIDE_CIDR
        group = networks.groups.get(nic.network or "")
        return group.cidr if group is not None else None

    async def _outer_address(self, live: LiveMachine, nic: Nic, address: str) -> str | None:
        """What the guest calls `address`, as others know it: in a fence, the translated one."""
        networks = self._floor.rooms.networks
        if not networks.is_fenced(nic):
            return address
        await networks.told_address(live.id, nic, address)
        return networks.addresses_of(live.id, [nic], {}).get(nic.id)

    async def open_stream(self, kind: str, ref: str, port: int | None) -> socket.socket:
        """A connected descriptor: the serial console, the display's VNC, or a TCP port of the guest."""
        live = self._floor.find(ref)
        if kind == "tcp":
            if port is None:
                raise UsageError("A TCP stream needs a port.")
            address = await self.address_of(ref)
            return await self._connect_tcp(live.name, address, port)
        if kind == "vnc" and live.vm.machine.display is Display.NONE:
            raise UnsupportedError(f"{live.name!r} has no display.", hint="Create it with --display vga.")
        if kind not in ("console", "vnc"):
            raise UsageError(f"There is no stream of kind {kind!r}.")
        live.require_process()
        path = live.run_dir.console if kind == "console" else live.run_dir.vnc
        return await asyncio.to_thread(_connect, str(path), live.name)


def _result(outcome: ExecOutcome) -> ExecResult:
    return ExecResult(
        exit_code=outcome.exit_code if outcome.exit_code is not None else 128 + (outcome.signal or 0),
        signal=outcome.signal,
        stdout_base64=base64.b64encode(outcome.stdout).decode(),
        stderr_base64=base64.b64encode(outcome.stderr).decode(),
        truncated=outcome.truncated,
    )


def believable(told: Iterable[str], cidr: str | None, others: Collection[str]) -> str | None:
    """The first address that a guest may have in its network. Its word alone must not lead a connection elsewhere: to
    the daemon's own services, to one of the `others`, or out by NAT."""
    if cidr is None:
        return None
    first, last = host_range(cidr)
    for address in told:
        with contextlib.suppress(ValueError):
            if first <= IPv4Address(address) <= last and address not in others:
                return address
    return None


def _connect(path: str, name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(path)
        sock.settimeout(None)
    except OSError as exc:
        sock.close()
        if isinstance(exc, TimeoutError):
            raise StateError(f"Somebody else is connected to {name!r} there.", state="", operation="stream") from exc
        raise GuestError(f"{name!r} does not answer there: {exc.strerror}.") from exc
    return sock
