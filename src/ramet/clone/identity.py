"""A clone becomes a machine of its own: its guest sets what the plan says, acknowledges, and only then has a network.

    pending       runs, links down; the guest is asked (`give`)
    acknowledged  guards stand on its ports, its links are up
    failed        it did not acknowledge: links stay down, and the record says why

Fail closed: a daemon that dies anywhere in between leaves a VM whose links are down and whose record says pending, and
the next daemon asks again. The plan has a generation, so that the guest knows what it has done already.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface

from ramet.errors import BusyError, DeadlineError, GuestError, RametError, StateError
from ramet.guest.identity import apply
from ramet.machine.lifecycle import Operation, next_state
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.machine.wiring import attach_nic
from ramet.model.identity import Acknowledgement, Identity, IdentityState, Plan
from ramet.model.machine import Nic, VmState
from ramet.network.firewall import Guard

ENTROPY_BYTES = 64
_ADDRESS_POLL_S = 0.03


async def give(live: LiveMachine, guard: Guard | None = None) -> Acknowledgement:
    """Ask the guest of a running clone to become what its plan says, and bring its links up when it has.

    `guard`: the senders that its ports must not let out, those of its source. Raises what the guest, or its silence,
    is the reason of; the record then says FAILED, and the links are down. BusyError when it is being asked already.
    """
    check_not_asked(live)
    live.identifying = True
    try:
        return await _give(live, guard)
    finally:
        live.identifying = False


def check_not_asked(live: LiveMachine) -> None:
    """Two who set up one guest at the same time would leave it half of each."""
    if live.identifying:
        raise BusyError(
            f"{live.name!r} is taking on its identity.",
            hint="Try again when it is done; `ramet task ls` shows it.",
            operation="identity",
        )


async def _give(live: LiveMachine, guard: Guard | None) -> Acknowledgement:
    plan = live.vm.identity.plan
    if plan is None:
        raise StateError(f"{live.name!r} was cloned bare.", hint="Clone it without --bare.", state="", operation="")
    next_state(live.vm.state, Operation.REACH_GUEST, name=live.name)
    try:
        reach("identity.begun")
        await _claim_addresses(live)
        acknowledgement = await _ask(live, plan)
        reach("identity.acknowledged")
        await _settle_addresses(live)
        await _set_guards(live, guard)
    except (RametError, OSError) as exc:
        await _failed(live, plan, exc)
        raise
    await live.change(identity=Identity(state=IdentityState.ACKNOWLEDGED, plan=plan, acknowledgement=acknowledgement))
    reach("identity.recorded")
    try:
        await open_links(live)
    except (RametError, OSError) as exc:
        await _failed(live, plan, exc)
        raise
    live.rooms.book.emit("vm.identified", f"{live.name} is a machine of its own.", live.vm)
    return acknowledgement


async def _ask(live: LiveMachine, plan: Plan) -> Acknowledgement:
    try:
        async with asyncio.timeout(plan.timeout_s):
            await live.agent.ping(timeout_s=plan.timeout_s)  # asks anew now and then; what follows is asked once
            if plan.thaw_file_systems:
                await live.agent.thaw_file_systems(timeout_s=plan.timeout_s)
            acknowledgement = await apply(live.agent, plan, entropy=os.urandom(ENTROPY_BYTES), now=time.time)
    except TimeoutError:
        raise DeadlineError(
            f"The guest of {live.name!r} did not acknowledge within {plan.timeout_s:g} s.",
            hint=f"See its console, then 'ramet vm identify {live.name}'; or allow more with --identity-timeout.",
        ) from None
    missing = [part.value for part in plan.parts if part not in acknowledgement.done]
    if missing or acknowledgement.generation != plan.generation:
        raise GuestError(
            f"The guest of {live.name!r} did not acknowledge: {', '.join(missing) or 'its generation is another'}.",
            hint=f"See its console, then 'ramet vm identify {live.name}'.",
        )
    return acknowledgement


async def replan(live: LiveMachine, plan: Plan) -> None:
    """A running VM is to be what this plan says: from here on it is off its networks, until `give` has succeeded."""
    check_not_asked(live)
    next_state(live.vm.state, Operation.REACH_GUEST, name=live.name)
    await live.change(identity=Identity(state=IdentityState.PENDING, plan=plan))
    await _close_links(live)


def set_by_hand(live: LiveMachine) -> Iterator[tuple[str, str, str]]:
    """Port group, MAC and address of each NIC whose plan has an address."""
    nics = {nic.id: nic for nic in live.vm.machine.nics}
    plan = live.vm.identity.plan
    for planned in plan.nics if plan is not None else ():
        nic = nics.get(planned.id)
        if planned.is_static and nic is not None and nic.network and not nic.is_user_mode:
            yield nic.network, nic.mac, str(IPv4Interface(planned.address).ip)


async def _claim_addresses(live: LiveMachine) -> None:
    """What is set by hand must not be leased to anybody else. ConflictError when it is somebody's."""
    for network, mac, address in set_by_hand(live):
        await live.rooms.networks.claim_addresses(network, {mac: address})


async def _settle_addresses(live: LiveMachine) -> None:
    """What the guest had leased until now is anybody's. Where that cannot be told it ends with its time."""
    for network, mac, _ in set_by_hand(live):
        with contextlib.suppress(RametError, OSError):
            await live.rooms.networks.settle_address(network, mac)


async def _failed(live: LiveMachine, plan: Plan, error: Exception) -> None:
    problem = str(error)
    await live.change(identity=Identity(state=IdentityState.FAILED, plan=plan, problem=problem[:1000]))
    await _close_links(live)  # one that had acknowledged before was asked again, or some of its links are up already
    live.rooms.book.emit("vm.identity-failed", f"{live.name} stays off the network: {problem}", live.vm)


async def _set_guards(live: LiveMachine, guard: Guard | None) -> None:
    """Before a link comes up: whatever the guest still says in its source's name ends at its port."""
    networks = live.rooms.networks
    if guard is None or not networks.privileged:
        return
    taps = [live.taps[nic.id] for nic in live.vm.machine.nics if nic.id in live.taps and not networks.is_fenced(nic)]
    if taps:  # in a fence, the source's MAC and address are the right ones
        await networks.set_port_guards(dict.fromkeys(taps, guard))


async def open_links(live: LiveMachine) -> None:
    """The cables and the lights of every NIC that is to be connected."""
    for nic in live.vm.machine.nics:
        if nic.connected:
            if nic.id in live.taps:
                await attach_nic(live, nic, live.taps[nic.id])
            await live.qmp.set_link(nic.id, up=True)


async def _close_links(live: LiveMachine) -> None:
    """As the record says: no light, and no cable. Each step for itself, for the VM may be ending."""
    for nic in live.vm.machine.nics:
        with contextlib.suppress(RametError, OSError):
            if live.vm.state is not VmState.FROZEN:  # its devices take no changes
                await live.qmp.set_link(nic.id, up=False)
        with contextlib.suppress(RametError, OSError):
            if nic.id in live.taps:
                await attach_nic(live, nic, live.taps[nic.id])


async def accept_bare(live: LiveMachine) -> None:
    """Take the clone as it is, by its owner's word: no identity, and the links come up."""
    check_not_asked(live)
    await live.change(identity=Identity(state=IdentityState.BARE))
    if live.vm.is_on:
        await open_links(live)


def guard_of(source: LiveMachine, addresses: Mapping[str, str]) -> Guard:
    """What must not come out of a clone: its source's MACs, and the addresses known (MAC -> address) to be theirs."""
    macs = frozenset(nic.mac for nic in source.vm.machine.nics if not nic.is_user_mode)
    return Guard(macs=macs, addresses=frozenset(addresses[mac] for mac in macs if mac in addresses))


def static_addresses(live: LiveMachine) -> dict[str, str]:
    """NIC id -> address, of those that the guest said it has set."""
    acknowledgement = live.vm.identity.acknowledgement
    found: dict[str, str] = {}
    for nic_id, text in (acknowledgement.addresses if acknowledgement else {}).items():
        try:
            found[nic_id] = str(IPv4Interface(text).ip)
        except ValueError:
            continue  # the guest's word: what makes no sense is no address
    return found


def addresses_of(live: LiveMachine, leases: Mapping[str, str]) -> dict[str, str]:
    """NIC id -> address, as far as it is known: translated by its fence, set by the guest, or leased to its MAC."""
    networks, static = live.rooms.networks, static_addresses(live)
    reached = networks.addresses_of(live.id, live.vm.machine.nics, leases)
    return {
        nic.id: reached.get(nic.id, "") if networks.is_fenced(nic) else static.get(nic.id, reached.get(nic.id, ""))
        for nic in _expecting(live)
    }


def _expecting(live: LiveMachine) -> Iterable[Nic]:
    """NICs whose address the host can know."""
    static = static_addresses(live)
    for nic in live.vm.machine.nics:
        network = live.rooms.book.network(nic.network) if nic.network and not nic.is_user_mode else None
        if nic.connected and network is not None and (network.dhcp or nic.id in static):
            yield nic


@dataclass
class Seen:
    """One VM on its networks."""

    addresses: dict[str, str] = field(default_factory=dict)
    """NIC id -> IPv4 address."""
    at: float = 0.0
    """When all of them were known, on the monotonic clock; 0 while some are missing, or none is to be had."""


async def wait_on_network(
    lives: Iterable[LiveMachine], timeout_s: float, asked: asyncio.Event | None = None
) -> dict[str, Seen]:
    """Until each VM has an address on every NIC that can have one, or the time is over: VM id -> what was seen.

    With `asked`, while their guests are still being asked for their identities: the time runs from its setting on.
    """
    waiting = {live.id: live for live in lives}
    found = {vm_id: Seen() for vm_id in waiting}
    deadline: float | None = None
    while waiting:
        networks = next(iter(waiting.values())).rooms.networks
        leases = dict(await networks.addresses()) if networks.privileged else {}
        now = time.monotonic()
        if deadline is None and (asked is None or asked.is_set()):
            deadline = now + timeout_s
        for vm_id, live in list(waiting.items()):
            if _is_settled(live, leases, found[vm_id], now, asking=deadline is None):
                del waiting[vm_id]
        if deadline is not None and now >= deadline:
            break
        if waiting:
            await asyncio.sleep(_ADDRESS_POLL_S)
    return found


def _is_settled(live: LiveMachine, leases: Mapping[str, str], seen: Seen, now: float, *, asking: bool) -> bool:
    """Whether there is nothing more to wait for; what is known of it goes into `seen`."""
    if live.vm.identity.holds_links_down:
        return not asking or live.vm.identity.state is IdentityState.FAILED
    known = addresses_of(live, leases)
    seen.addresses = {nic_id: address for nic_id, address in known.items() if address}
    if not all(known.values()):
        return False
    seen.at = now if known else 0.0
    return True
