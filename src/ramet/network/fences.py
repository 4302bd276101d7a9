"""All fences of a daemon: who is in which, and what runs for them. What one is made of stands in ``fence``.

A fence lives from its first member's attachment until its last member is gone. Members hold claims in the ledger,
which is on disk: a fence is built again from them alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

from ramet.errors import NotFoundError, RametError, UsageError
from ramet.model.cancellation import uncut
from ramet.model.host import Network
from ramet.model.machine import Inside, Nic
from ramet.network import fence as parts
from ramet.network.dhcp import dnsmasq_spec, read_leases, service_user
from ramet.network.fence import Fence
from ramet.network.firewall import FENCE_PREFIX
from ramet.network.ledger import Claim, Ledger
from ramet.network.links import Links
from ramet.network.namespace import Namespace, NamespaceThread, in_namespace
from ramet.network.services import Service, ServiceSpec, end_all, serve, spawn_detached

logger = logging.getLogger(__name__)

T = TypeVar("T")

INSIDE_CIDR = "192.168.77.0/24"
"""What a VM finds in its fence that was in no port group before."""


def fence_of(nic: Nic, tap: str) -> str:
    """The name of the NIC's fence. The VM's own begins with a dot, which names that people give cannot."""
    return nic.fence or "." + tap.rpartition("-")[0]


class Fences:
    """Life: `restore`, the rest in any order, `close`. `thread` is in the daemon's namespace."""

    def __init__(self, namespace: Namespace, thread: NamespaceThread, directory: Path, ledger: Ledger) -> None:
        self._namespace = namespace
        self._thread = thread
        self._directory = directory
        self._ledger = ledger
        self._services: dict[str, Service] = {}
        self._changing = asyncio.Lock()

    @property
    def problems(self) -> list[str]:
        return [service.problem for service in self._services.values() if service.problem]

    # -- members -------------------------------------------------------------------------------------------------------

    async def attach(self, tap: str, nic: Nic, group: Network, known: Mapping[str, str]) -> Claim:
        """Put a tap into its fence, which is made when it is not there. Idempotent.

        `known`: MAC -> address, of everybody outside: where the source's address is found at the first time. Raises
        ConflictError when the fence has no place, CapacityError, NotFoundError when the tap is gone.
        """
        async with self._changing:
            name = fence_of(nic, tap)
            before = self._ledger.find(tap)
            if before is not None and (before.network, before.fence) != (group.name, name):
                await self._leave(before)
                before = None
            claim = self._claim(tap, nic, group, name, known)
            try:
                fence = self._fence(group, name)
                await self._build(fence)
                await self._bring(tap, fence)
                assert claim.inside is not None
                await self._inside(fence.namespace, parts.plug, tap, claim.inside)
            except BaseException:
                if before is None:
                    with contextlib.suppress(RametError, OSError):
                        await self._leave(claim)
                raise
            return claim

    def check(self, nic: Nic, group: Network) -> None:
        """Raises ConflictError when the fence that the NIC names has no place for it."""
        if nic.fence is not None:
            fence, inside = self._fence(group, nic.fence), _inside_or_default(nic, group)
            address = fence.cidr.partition("/")[0]
            parts.check_member(
                Claim(network=group.name, holder="", mac=nic.mac, address=address, fence=nic.fence, inside=inside),
                fence,
            )

    def _claim(self, tap: str, nic: Nic, group: Network, name: str, known: Mapping[str, str]) -> Claim:
        inside = _inside_or_default(nic, group)
        fence = self._fence(group, name)
        present = self._ledger.get(group.name, tap)
        inner = present.inner if present is not None and present.inside == inside else None

        def make(address: str) -> Claim:
            return Claim(
                network=group.name, holder=tap, mac=nic.mac, address=address, fence=name, inside=inside, inner=inner
            )

        parts.check_member(make(fence.cidr.partition("/")[0]), fence)
        claim = self._ledger.allocate(fence.cidr, {}, make, group.name, tap)
        self._ledger.replace(make(claim.address))
        if inner is None:
            self._note(group.name, name, {nic.mac: self._sources_address(nic, inside, known)})
        return self._ledger.get(group.name, tap) or claim

    def _sources_address(self, nic: Nic, inside: Inside, known: Mapping[str, str]) -> str | None:
        """Of another machine with this MAC in this network: in another fence, or where the source is."""
        for other in self._ledger.all():
            if (other.mac, other.inside) == (nic.mac, inside) and other.inner is not None:
                return other.inner
        return known.get(nic.mac)

    def _fence(self, group: Network, name: str) -> Fence:
        claims = tuple(claim for claim in self._ledger.of(group.name) if claim.fence == name)
        return Fence(self._namespace.name, group, name, claims)

    async def detach(self, tap: str) -> None:
        """The cable is pulled: back to the daemon's namespace, on no bridge. The claim, and so the address, stays."""
        async with self._changing:
            claim = self._ledger.find(tap)
            if claim is not None and claim.fence is not None:
                await self._take_out(claim)

    async def leave(self, wanted: Callable[[Claim], bool]) -> None:
        """Claims for which this is true end, and with its last one a fence. Idempotent."""
        async with self._changing:
            for claim in self._ledger.all():
                if claim.fence is not None and wanted(claim):
                    await self._leave(claim)

    async def _leave(self, claim: Claim) -> None:
        await self._take_out(claim)
        self._ledger.give_up(lambda other: other == claim)
        # The group may be on its way out: its bridge and network do not matter to an end.
        rest = [other for other in self._ledger.of(claim.network) if other.fence == claim.fence]
        if not rest:
            await self._remove(parts.fence_token(claim.network, claim.fence or ""))

    async def _take_out(self, claim: Claim) -> None:
        namespace = self._namespace_of(parts.fence_token(claim.network, claim.fence or ""))
        if await asyncio.to_thread(namespace.exists):
            with contextlib.suppress(NotFoundError):
                await self._inside(namespace, parts.hand_over, claim.holder, self._namespace)

    async def _bring(self, tap: str, fence: Fence) -> None:
        if await self._thread.netlink(parts.hand_over, tap, fence.namespace):
            return
        if not await self._inside(fence.namespace, Links.exists, tap):
            raise NotFoundError(f"There is no network tap {tap}: its VM is off.")

    # -- fences --------------------------------------------------------------------------------------------------------

    async def _build(self, fence: Fence) -> None:
        await asyncio.to_thread(fence.namespace.ensure)
        await self._thread.netlink(parts.connect, fence)
        await self._inside(fence.namespace, parts.furnish, fence)
        if fence.group.dhcp:
            await self._serve(fence)
        else:
            await self._end_service(fence.token)

    async def _serve(self, fence: Fence) -> None:
        files = self._directory / fence.stem
        text = parts.render_dhcp(fence, files, service_user())
        spawn, is_ready = functools.partial(self._spawn, fence.namespace), functools.partial(_is_ready, files)

        async def make() -> Service:
            spec = await asyncio.to_thread(dnsmasq_spec, f"dnsmasq of fence {fence.name}", files, text)
            return Service(spec, spawn, is_ready)

        await serve(self._services, fence.token, make)

    async def _spawn(self, namespace: Namespace, spec: ServiceSpec) -> int:
        await asyncio.to_thread(spec.log.with_suffix(".pid").unlink, missing_ok=True)
        return await self._inside(namespace, lambda _: spawn_detached(spec))

    async def _end_service(self, token: str) -> None:
        service = self._services.pop(token, None)
        if service is not None:
            await service.stop()
        await end_all("dnsmasq", f"--conf-file={self._directory}/fence-{token}")

    async def _remove(self, token: str) -> None:
        """Its processes, members back to the daemon's namespace, then all of it. Idempotent."""
        await self._end_service(token)
        namespace = self._namespace_of(token)
        if await asyncio.to_thread(namespace.exists):
            await self._inside(namespace, parts.evict, self._namespace)
        await asyncio.to_thread(namespace.remove)
        await self._thread.netlink(Links.delete, FENCE_PREFIX + token)
        for path in self._directory.glob(f"fence-{token}*"):
            path.unlink(missing_ok=True)

    def _namespace_of(self, token: str) -> Namespace:
        return Namespace(f"{self._namespace.name}-{token}")

    async def _inside(self, namespace: Namespace, work: Callable[..., T], *args: object) -> T:
        return await asyncio.to_thread(in_namespace, namespace.path, work, *args)

    async def refresh(self, group: Network) -> None:
        """What is described differently now (NAT, DHCP) becomes so in the fences there are."""
        async with self._changing:
            for fence in self._standing(group):
                await self._build(fence)

    def _standing(self, group: Network) -> list[Fence]:
        names = {claim.fence for claim in self._ledger.of(group.name) if claim.fence is not None}
        fences = [self._fence(group, name) for name in sorted(names)]
        return [fence for fence in fences if fence.namespace.exists()]

    # -- addresses -----------------------------------------------------------------------------------------------------

    async def learn(self, group: Network, told: Mapping[str, str] | None = None, tap: str | None = None) -> None:
        """Look for inner addresses that changed, or were not known: in leases, then on the wire.

        `told`: MAC -> address of the guest behind `tap`, who said so itself.
        """
        async with self._changing:
            for fence in self._standing(group):
                known = await self._known(fence)
                if told and any(claim.holder == tap for claim in fence.claims):
                    known |= told
                await uncut(self._take_in(group, fence, known))

    async def _take_in(self, group: Network, fence: Fence, known: Mapping[str, str]) -> None:
        """What is noted is built, or it is not noted: nobody would look at it again."""
        if not self._note(group.name, fence.name, known):
            return
        try:
            await self._build(self._fence(group, fence.name))
        except (RametError, OSError):
            for claim in fence.claims:
                self._ledger.replace(claim)
            raise

    async def _known(self, fence: Fence) -> dict[str, str]:
        found: dict[str, str] = {}
        if any(claim.inner is None for claim in fence.claims):
            found = await self._inside(fence.namespace, Links.neighbours)
        leases = await asyncio.to_thread(read_leases, self._directory / fence.stem) if fence.group.dhcp else {}
        return found | {mac: lease.address for mac, lease in leases.items()}

    def _note(self, group: str, name: str, known: Mapping[str, str | None]) -> bool:
        """Whether something was new."""
        claims = [claim for claim in self._ledger.of(group) if claim.fence == name]
        found = parts.learned(claims, {mac: address for mac, address in known.items() if address})
        for claim in claims:
            if claim.holder in found:
                self._ledger.replace(claim.changed(inner=found[claim.holder]))
        return bool(found)

    def translated(self) -> dict[str, str]:
        """Tap -> the address by which its guest is reached, of those whose inner address is known."""
        return {claim.holder: claim.address for claim in self._ledger.all() if claim.fence and claim.inner}

    # -- beginning and end ---------------------------------------------------------------------------------------------

    async def restore(self, group: Network) -> None:
        """Have the fences that outlived the daemon whole again, and served. Raises the first failure, after all."""
        failures: list[Exception] = []
        async with self._changing:
            for fence in self._standing(group):
                try:
                    await self._build(fence)
                except (RametError, OSError) as exc:
                    failures.append(exc)
        if failures:
            raise failures[0]

    async def collect(self, live_taps: Collection[str], known_taps: Collection[str] | None) -> list[str]:
        """End the claims of VMs that are no more (`known_taps`: of all that are), and the fences without a live tap."""
        if known_taps is not None:
            await self.leave(lambda claim: claim.holder not in known_taps)
        async with self._changing:
            live = {
                parts.fence_token(claim.network, claim.fence)
                for claim in self._ledger.all()
                if claim.fence is not None and claim.holder in live_taps
            }
            gone = [
                namespace.name.removeprefix(f"{self._namespace.name}-")
                for namespace in parts.namespaces_of(self._namespace.name)
            ]
            gone = [token for token in gone if token not in live]
            for token in gone:
                await self._remove(token)
            return gone

    async def close(self, *, end: bool) -> None:
        """Let them go on for their guests, or `end` them all; claims stay."""
        async with self._changing:
            for service in self._services.values():
                await (service.stop() if end else service.release())
            self._services.clear()
            if end:
                for namespace in parts.namespaces_of(self._namespace.name):
                    await end_all("dnsmasq", f"--conf-file={self._directory}/fence-")
                    await asyncio.to_thread(namespace.remove)


def _inside_or_default(nic: Nic, group: Network) -> Inside:
    return nic.inside or Inside(network=group.name, cidr=INSIDE_CIDR)


async def _is_ready(files: Path) -> bool:
    return await asyncio.to_thread(Path(f"{files}.pid").exists)


def placement(
    nic: Nic, source: Network | None, target: Network | None, fence: str | None
) -> dict[str, str | Inside | None]:
    """What a NIC's record says of its fence when it moves, or its clone is put, from `source` to `target`. Pure.

    Raises UsageError for a fence on a port group that has none.
    """
    check_fence(target, fence)
    if target is None or not target.fenced:
        return {"fence": None, "inside": None}
    inside = nic.inside
    if inside is None and source is not None:
        inside = Inside(network=source.name, cidr=INSIDE_CIDR if source.fenced else source.cidr)
    return {"fence": fence, "inside": inside}


def check_fence(target: Network | None, fence: str | None) -> None:
    """Raises UsageError for a fence where there are none."""
    if fence is not None and (target is None or not target.fenced):
        where = f"Port group {target.name!r} is not fenced" if target else "It is in no port group"
        raise UsageError(f"{where}: there is no fence {fence!r}.", hint="See 'ramet network ls'.")
