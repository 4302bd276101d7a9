"""Everything the daemon does with networks, behind one door: port groups, taps, addresses, connections.

Without the privilege every method answers PrivilegeError with the remedy; VMs on the port group ``user`` need
none of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

from ramet.errors import DeadlineError, NotFoundError, PrivilegeError, RametError, UsageError
from ramet.model.host import Network
from ramet.model.machine import DEFAULT_NETWORK, USER_NETWORK, Nic
from ramet.network import addresses, nat, portgroups, privilege, services, taps, uplink
from ramet.network.dhcp import Dhcp, Lease
from ramet.network.fences import Fences
from ramet.network.firewall import Guard, serves_names
from ramet.network.ledger import Ledger
from ramet.network.links import Links
from ramet.network.namespace import Namespace, NamespaceThread, namespace_name
from ramet.network.reservations import Reservations
from ramet.network.taps import OpenTap

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_S = 0.05
_CARRIER_S = 2.0
_CARRIER_POLL_S = 0.002


class Networks:
    """The networks of one daemon.

    Life: `start`, `restore` the port groups of the inventory, `collect`, the rest in any order, `close`. What stands
    in the kernel and runs in the namespace survives the daemon; `restore` takes it over and disturbs nobody.

    `outside`: the namespace where NAT comes out, for tests; None is the host's own.
    """

    def __init__(self, state_dir: Path, *, qemu_uid: int | None = None, outside: NamespaceThread | None = None) -> None:
        self.namespace = Namespace(namespace_name(state_dir))
        self.problem: str | None = "The network was not started."
        self._directory = state_dir / "network"
        self._qemu_uid = qemu_uid
        self._thread = NamespaceThread(self.namespace)
        self._outside = outside
        self._dhcp = Dhcp(self._thread, self._directory)
        self._ledger = Ledger(self._directory / "addresses.json")
        self._reservations = Reservations(self._ledger, self._dhcp)
        self._fences = Fences(self.namespace, self._thread, self._directory, self._ledger)
        self._nat = nat.Nat(self.namespace, self._thread, self._spawn_outside, self._directory / "pasta.log")
        self._groups: dict[str, Network] = {}
        self._failures: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._made = False

    @property
    def privileged(self) -> bool:
        """Whether there are port groups; `problem` says why not."""
        return self.problem is None

    @property
    def warnings(self) -> list[str]:
        """What does not work right now although it should: a server that dies, an uplink that is lost."""
        served = (*self._dhcp.problems, *self._fences.problems, self._nat.problem, self._ledger.problem)
        return [text for text in (*self._failures.values(), *served) if text]

    @property
    def groups(self) -> Mapping[str, Network]:
        """The port groups ensured so far, by name."""
        return self._groups

    async def start(self) -> None:
        """Make or find the namespace. Never raises for a missing privilege: then `problem` says what is missing."""
        self.problem = await asyncio.to_thread(privilege.find_problem)
        if self.problem is not None:
            return
        try:
            await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True, mode=0o700)
            await asyncio.to_thread(self.namespace.ensure)
            self._made = True
            await self._thread.start()
            await self._thread.netlink(portgroups.prepare_namespace)
            await asyncio.to_thread(self._ledger.load)
        except (OSError, RametError) as exc:
            await self._thread.close()
            self.problem = f"The network namespace could not be set up: {exc}"
            logger.warning("%s", self.problem)

    async def close(self, remove_namespace: bool = False) -> None:
        """Let everything go on for the guests; or, with `remove_namespace`, end it all and leave nothing but leases."""
        async with self._changing:
            await self._fences.close(end=remove_namespace)
            await self._dhcp.close(end=remove_namespace)
            await (self._nat.stop() if remove_namespace else self._nat.release())
            if remove_namespace:  # the kernel ends a namespace in its own time; the host's interfaces are free at once
                for group in [group for group in self._groups.values() if group.uplink]:
                    await self._thread.netlink(uplink.disconnect, group.bridge)
            await self._thread.close()
            if remove_namespace and self._made:
                await asyncio.to_thread(self.namespace.remove)
            self._groups.clear()
            self.problem = "The network is closed."

    def _check(self) -> None:
        if self.problem is not None:
            raise PrivilegeError(f"Port groups are not available: {self.problem}", hint=privilege.REMEDY)

    # Port groups

    async def suggest_default(self, *, nat: bool = False) -> Network:
        """The description of the port group that exists from the start: DHCP, a network that clashes with nothing."""
        return await self.plan(Network(name=DEFAULT_NETWORK, dhcp=True, nat=nat))

    async def plan(self, network: Network) -> Network:
        """What `ensure` would make: bridge and network filled in. Raises every refusal, and changes nothing."""
        self._check()
        if network.name == USER_NETWORK:
            raise UsageError(f"The name {USER_NETWORK!r} stands for QEMU's user-mode network.", hint="Choose another.")
        routes = await asyncio.to_thread(self._host_routes)
        others = {name: group.cidr for name, group in self._groups.items() if group.cidr and name != network.name}
        planned = portgroups.complete(network, routes, others)
        self._check_change(planned)
        if planned.uplink:
            uplinks = {name: group.uplink for name, group in self._groups.items() if group.uplink}
            uplink.check_others(planned, uplinks)
            if not await self._thread.netlink(uplink.is_connected, planned):
                await self._outside_netlink(uplink.check_host, uplink.parse(planned.uplink))
        if planned.dhcp:
            services.find_program("dnsmasq", "dnsmasq-base")
        if planned.nat:
            nat.check_available()
        return planned

    def _check_change(self, planned: Network) -> None:
        """What guests that are plugged in could not follow. Raises UsageError."""
        before = self._groups.get(planned.name)
        for field in ("fenced", "uplink"):
            if before is not None and getattr(before, field) != getattr(planned, field):
                raise UsageError(
                    f"Whether port group {planned.name!r} is {field.replace('uplink', 'uplinked')} cannot be changed.",
                    hint="Make another one, and move the guests.",
                )

    async def ensure(self, network: Network) -> Network:
        """Make the port group, or make the one that is there as described; returns it with bridge and network.

        Raises UsageError, ConflictError (networks overlap), UnsupportedError (a program is missing), PrivilegeError:
        nothing has changed then. ToolError, DeadlineError: a new port group is taken away again, and one that was
        there before is put back as it was, as far as that succeeds.
        """
        async with self._changing:
            planned = await self.plan(network)
            before = self._groups.get(planned.name)
            try:
                await self._establish(planned)
            except BaseException:
                with contextlib.suppress(RametError, OSError):
                    await (self._remove(planned) if before is None else self._establish(before))
                raise
            return planned

    async def restore(self, networks: Iterable[Network]) -> None:
        """At the daemon's start: bring back the port groups as they were ensured once, before any new one is chosen.

        Raises PrivilegeError only. What fails (no route to the outside yet, a program that was uninstalled) costs a
        port group its DHCP or NAT, not its bridge; it is tried again where that can help, and stands in `warnings`.
        """
        self._check()
        async with self._changing:
            all_ = [network.changed(bridge=portgroups.bridge_name(network.name)) for network in networks]
            # All at once: rules are rendered from what is known, and none may be missing while others are restored.
            self._groups.update({network.name: network for network in all_})
            for network in all_:
                self._failures.pop(network.name, None)
                try:
                    await self._establish(network, insist=True)
                except (RametError, OSError) as exc:
                    self._failures[network.name] = f"Port group {network.name!r} is not whole: {exc}"
                    logger.warning("%s", self._failures[network.name])

    async def _establish(self, network: Network, *, insist: bool = False) -> None:
        await self._thread.netlink(portgroups.ensure_bridge, network)
        self._groups[network.name] = network
        await self._apply_rules()
        if network.uplink:
            if await self._thread.netlink(uplink.is_connected, network):
                await self._outside_netlink(uplink.mend, network)
            else:
                await self._outside_netlink(uplink.connect, network, self.namespace)
            await self._thread.netlink(uplink.plug, network)
        self._dhcp.set_reservations(network.name, self._ledger.reservations(network.name))
        if serves_names(network):
            await self._dhcp.ensure(network, insist=insist)
        else:
            await self._dhcp.stop(network)
        if network.fenced:
            await self._fences.restore(network)
        if network.nat:
            await self._nat.ensure(insist=insist)
        else:
            await self._end_idle_uplink()
        self._failures.pop(network.name, None)

    async def remove(self, network: Network | str) -> None:
        """Take the port group away; taps on it stay, on no bridge. Idempotent."""
        self._check()
        async with self._changing:
            name = network if isinstance(network, str) else network.name
            await self._remove(self._groups.get(name, Network(name=name, bridge=portgroups.bridge_name(name))))

    async def _remove(self, network: Network) -> None:
        self._groups.pop(network.name, None)
        self._failures.pop(network.name, None)
        await self._fences.leave(lambda claim: claim.network == network.name)
        self._ledger.give_up(lambda claim: claim.network == network.name)
        await self._end_idle_uplink()
        await self._dhcp.remove(network)
        await self._thread.netlink(uplink.disconnect, network.bridge)
        await self._thread.netlink(Links.delete, network.bridge)
        await self._apply_rules()

    async def _apply_rules(self) -> None:
        await self._thread.run(portgroups.apply_rules, list(self._groups.values()))

    async def _end_idle_uplink(self) -> None:
        if not any(group.nat for group in self._groups.values()):
            await self._nat.stop()

    def _group(self, name: str) -> Network:
        self._check()
        try:
            return self._groups[name]
        except KeyError:
            raise NotFoundError(f"There is no port group {name!r}.", hint="See: ramet network ls.") from None

    # Taps

    async def open_tap(self, vm_id: str, nic_index: int) -> OpenTap:
        """A tap for a VM's NIC, on no bridge yet. The caller closes its descriptor after handing it to QEMU; the tap
        goes when QEMU's copy closes. Raises BusyError while an older process still holds it."""
        self._check()
        name = taps.tap_name(vm_id, nic_index)
        return await self._thread.netlink(
            functools.partial(taps.open_tap, name=name, owner_uid=self._qemu_uid), discard=OpenTap.close
        )

    async def attach(self, tap: str, network: str | None, nic: Nic | None = None) -> None:
        """Move a tap to a port group, or off any (None), live. Raises NotFoundError for either.

        `nic` is needed where the port group is fenced: then the tap goes into its fence, which is made if need be
        (ConflictError when that has no place for it).
        """
        self._check()
        group = self._group(network) if network is not None else None
        if group is not None and group.fenced:
            if nic is None:
                raise UsageError(f"Port group {group.name!r} is fenced: it takes NICs, not bare taps.")
            await self._fences.attach(tap, nic, group, await self._known_outside())
            return
        if group is None:
            await self._fences.detach(tap)
        else:
            await self._fences.leave(lambda claim: claim.holder == tap)
        await self._thread.netlink(taps.attach, tap, group.bridge if group else None)
        if group is not None:
            await self._wait_until_up(group.bridge)

    async def _wait_until_up(self, bridge: str) -> None:
        """A bridge without ports has no carrier, and the kernel activates it some milliseconds after the first port
        is there: until then the gateway's and dnsmasq's answers are lost, and a guest asks again only after 1 s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CARRIER_S):
                while not await self._thread.netlink(Links.is_up, bridge):  # noqa: ASYNC110 - the kernel's event
                    await asyncio.sleep(_CARRIER_POLL_S)

    async def detach(self, tap: str) -> None:
        """Take a tap off its port group, as pulling the cable would; a tap that is gone already is no error."""
        with contextlib.suppress(NotFoundError):
            await self.attach(tap, None)

    async def remove_tap(self, tap: str) -> None:
        """Delete a tap whoever holds it, with its guard and its place in a fence; idempotent."""
        self._check()
        await self._fences.leave(lambda claim: claim.holder == tap)
        await self._thread.netlink(Links.delete, tap)
        await self.set_port_guards({tap: Guard()})

    async def set_port_guards(self, guards: Mapping[str, Guard]) -> None:
        """From now on these taps' frames must not carry these senders (a clone's: those of its source).

        Tap -> guard, in one transaction of some 10 ms however many they are; an empty guard lifts one.
        """
        self._check()
        await self._thread.run(taps.set_port_guards, guards)

    async def port_guards(self) -> dict[str, Guard]:
        """Tap -> guard, as the kernel has them."""
        self._check()
        return await self._thread.run(taps.read_guards)

    async def list_taps(self) -> dict[str, str | None]:
        """Tap -> bridge, of every tap in the namespace."""
        self._check()
        links = await self._thread.netlink(Links.all)
        names = {link.index: link.name for link in links}
        return {
            link.name: names.get(link.master)
            for link in links
            if link.kind == "tun" and link.name.startswith(taps.TAP_PREFIX)
        }

    async def collect(
        self,
        live_taps: Collection[str],
        groups: Collection[str] | None = None,
        known_taps: Collection[str] | None = None,
    ) -> list[str]:
        """Delete the taps not in `live_taps`, fences without any of these and, with `groups`, the port groups not named
        there; what was deleted. `known_taps`: of all VMs, those that are off too: others' addresses are free again."""
        self._check()
        gone = await self._fences.collect(live_taps, known_taps)
        gone += await self._thread.netlink(taps.collect, live_taps)
        if groups is not None:
            for name in (await self._thread.netlink(portgroups.bridges)).values():
                if name not in groups:
                    await self.remove(name)
                    gone.append(name)
        return gone

    # Addresses and connections

    async def leases(self, network: str) -> dict[str, Lease]:
        """MAC -> lease of a port group; empty without DHCP."""
        return await self._dhcp.leases(self._group(network))

    async def reserve(self, network: str, reservations: Mapping[str, str]) -> None:
        """Give these MACs these addresses of the port group always: MAC -> address, replacing earlier ones.

        Durable. Raises UsageError for an address that no guest can have, ConflictError for one that somebody else has.
        """
        async with self._changing:
            await self._reservations.replace(self._group(network), reservations)

    async def claim_addresses(self, network: str, claims: Mapping[str, str]) -> None:
        """More reservations, MAC -> address: for guests that set theirs themselves, so that nobody else is given it.

        Nothing to do on a port group that hands out no addresses, or for one outside of its network. ConflictError
        when somebody else has one: then nothing has changed.
        """
        async with self._changing:
            await self._reservations.claim(self._group(network), claims)

    async def settle_address(self, network: str, mac: str) -> None:
        """A guest has set the address that was claimed for it: a lease of another is given back. Idempotent."""
        async with self._changing:
            await self._reservations.settle(self._group(network), mac)

    async def release(self, mac: str) -> None:
        """Give the leases and reservations of a MAC back, when its VM is removed; idempotent.

        Not for a NIC in a fence, whose MAC is its source's: see `release_nic`.
        """
        self._check()
        for group in list(self._groups.values()):
            if group.cidr is not None and not group.fenced:
                async with self._changing:
                    await self._reservations.release(group, mac)

    async def release_nic(self, vm_id: str, nic: Nic) -> None:
        """Everything that a NIC of a VM that is removed had: its place in a fence, or leases and reservations."""
        self._check()
        tap = taps.tap_name(vm_id, nic.index)
        await self._fences.leave(lambda claim: claim.holder == tap)
        if nic.inside is None:
            await self.release(nic.mac)

    async def addresses(self) -> dict[str, str]:
        """MAC -> IPv4 address, by lease, else by what was seen on the wire; of everybody outside fences in one go.

        Addresses of guests in fences are looked for as well, and found by `addresses_of`.
        """
        self._check()
        for group in [group for group in self._groups.values() if group.fenced]:
            try:
                await self._fences.learn(group)
            except (RametError, OSError) as exc:  # tried again the next time; others' addresses are known all the same
                logger.warning("addresses in fences of port group %r were not learnt: %s", group.name, exc)
        return await self._known_outside()

    async def _known_outside(self) -> dict[str, str]:
        found = await self._thread.netlink(Links.neighbours)
        for group in list(self._groups.values()):
            if not group.fenced:
                found |= await self._reservations.leased(group)
        return found

    def addresses_of(self, vm_id: str, nics: Iterable[Nic], known: Mapping[str, str]) -> dict[str, str]:
        """NIC id -> the address by which a VM's connected NIC is reached: translated, where it is in a fence.

        `known`: what `addresses` answered.
        """
        translated = self._fences.translated()
        found: dict[str, str | None] = {}
        for nic in nics:
            if nic.connected and self.is_fenced(nic):
                found[nic.id] = translated.get(taps.tap_name(vm_id, nic.index))
            elif nic.connected and not nic.is_user_mode:
                found[nic.id] = known.get(nic.mac)
        return {nic_id: address for nic_id, address in found.items() if address}

    def is_fenced(self, nic: Nic) -> bool:
        """Whether the NIC belongs into a fence."""
        group = self._groups.get(nic.network or "")
        return group is not None and group.fenced

    def check_fence(self, nic: Nic) -> None:
        """Before anything is made: raises ConflictError when the fence that the NIC names has no place for it."""
        group = self._groups.get(nic.network or "")
        if group is not None and group.fenced:
            self._fences.check(nic, group)

    async def told_address(self, vm_id: str, nic: Nic, address: str) -> None:
        """A fenced guest's own word on its address, where DHCP did not give it and nothing was seen of it yet."""
        group = self._group(nic.network or "")
        if group.fenced:
            await self._fences.learn(group, {nic.mac: address}, taps.tap_name(vm_id, nic.index))

    async def address_of(self, mac: str) -> str | None:
        """The IPv4 address of one MAC outside fences; None when unknown."""
        return (await self.addresses()).get(mac)

    async def traffic(self) -> dict[str, tuple[int, int]]:
        """Bytes that went to and came from each tap's guest, since the tap was made; without those in fences."""
        return await self._thread.run(taps.read_traffic) if self.privileged else {}

    async def connect_tcp(self, address: str, port: int, timeout_s: float) -> socket.socket:
        """A non-blocking socket connected to a guest. It belongs to the namespace and can be sent to another process.

        The caller closes it. Raises DeadlineError, or OSError (refused; unreachable: a port group without network).
        """
        self._check()
        return await self._thread.connect_tcp(address, port, timeout_s)

    async def wait_for_tcp(self, address: str, port: int, timeout_s: float) -> None:
        """Until the guest accepts connections on a port. Raises DeadlineError."""
        self._check()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(OSError, DeadlineError):
                        (await self.connect_tcp(address, port, min(timeout_s, 2.0))).close()
                        return
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError as exc:
            raise DeadlineError(f"{address} port {port} accepted no connection within {timeout_s:g} s.") from exc

    # Parts

    def _host_routes(self) -> list[IPv4Network]:
        return addresses.parse_routes(Path("/proc/self/net/route").read_text())

    async def _outside_netlink(self, work: Callable[..., T], *args: object) -> T:
        """`work(links, *args)` where the host's own interfaces are."""
        if self._outside is not None:
            return await self._outside.netlink(work, *args)
        return await asyncio.to_thread(_with_links, work, *args)

    async def _spawn_outside(self, spec: services.ServiceSpec) -> int:
        if self._outside is not None:
            return await self._outside.run(services.spawn_detached, spec)
        return await asyncio.to_thread(services.spawn_detached, spec)


def _with_links(work: Callable[..., T], *args: object) -> T:
    with contextlib.closing(Links()) as links:
        return work(links, *args)
