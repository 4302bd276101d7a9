"""Step one of every clone, and its dry run: all refusals come from here, and nothing has changed when they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from ramet.clone.customize import identity_for, numbered_names
from ramet.clone.forecast import Load, check_bound, forecast_stun_ms
from ramet.clone.identity import check_not_asked
from ramet.errors import CapacityError, ConflictError, NotFoundError, UnsupportedError, UsageError
from ramet.machine.lifecycle import Operation, next_state
from ramet.machine.live import LiveMachine
from ramet.memory.ksm import Ksm
from ramet.model.identity import DHCP, KEEP, Identity
from ramet.model.machine import USER_NETWORK, Machine, Nic
from ramet.model.requests import CloneVm, NicChange
from ramet.model.trying import TRY_MARK
from ramet.model.units import MIB, format_bytes, new_mac
from ramet.model.views import CloneForecast
from ramet.network.fences import placement

HOSTNAME_KEY = "guestinfo.ramet.hostname"
DISK_RESERVE_BYTES = 256 * MIB
DISK_PER_CLONE_BYTES = 16 * MIB


@dataclass(frozen=True)
class Order:
    """A clone request that passed every check."""

    machines: tuple[Machine, ...]
    """One for each name; disks still name the source's layers."""
    vm_ids: tuple[str, ...]
    identities: tuple[Identity, ...]
    request: CloneVm
    workflow: str
    forecast_ms: float | None
    warnings: tuple[str, ...]
    accepted_at: float
    check_ms: float

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(machine.name for machine in self.machines)

    def without(self, names: Collection[str]) -> Order:
        """The part of it that is still to be made."""
        rest = [index for index, name in enumerate(self.names) if name not in names]
        return replace(
            self,
            machines=tuple(self.machines[index] for index in rest),
            vm_ids=tuple(self.vm_ids[index] for index in rest),
            identities=tuple(self.identities[index] for index in rest),
        )

    def as_forecast(self) -> CloneForecast:
        return CloneForecast(
            workflow=self.workflow, forecast_stun_ms=self.forecast_ms, names=self.names, warnings=self.warnings
        )


def check(live: LiveMachine, request: CloneVm, is_taken: Callable[[str], bool], accepted_at: float) -> Order:
    """Every check there is, cheapest first. Raises the error that says what to do; changes nothing."""
    next_state(live.vm.state, Operation.CLONE, name=live.name)
    check_not_asked(live)  # the script that runs in it would go on in the clone, with the source's plan
    names = numbered_names(request)
    _check_names(request, names, is_taken)
    _check_process(live)
    machines = tuple(clone_machine(live, request, name) for _, name in names)
    fenced = _fenced(live, machines[0])
    identities = tuple(
        identity_for(request, machine, live.vm.machine, number, fenced)
        for machine, (number, _) in zip(machines, names, strict=True)
    )
    _check_addresses(identities)
    machines = tuple(map(_named_in_guest, machines, identities))
    _check_memory(live, len(machines))
    _check_disk_space(live, len(machines))
    forecast = None
    if not live.vm.frozen:
        forecast = forecast_stun_ms(Load(live.resident_bytes()), live.vm.stuns)
        check_bound(forecast, request.max_stun_ms, live.name)
    return Order(
        machines=machines,
        vm_ids=tuple(live.rooms.book.new_vm_id() for _ in machines),
        identities=identities,
        request=request,
        workflow="frozen" if live.vm.frozen else "live",
        forecast_ms=forecast,
        warnings=_warnings(live, request, machines),
        accepted_at=accepted_at,
        check_ms=(time.monotonic() - accepted_at) * 1000,
    )


def _check_names(request: CloneVm, names: Sequence[tuple[int, str]], is_taken: Callable[[str], bool]) -> None:
    for _, name in names:
        if is_taken(name):
            raise ConflictError(f"There is a VM named {name!r} already.", hint="Choose another name.", name=name)
    if len(names) > 1 and (request.uuid or any(change.mac for change in request.nics)):
        raise UsageError(
            "A UUID or a MAC address belongs to one clone, and several are asked for.",
            hint="Clone them one by one, or leave these out: each gets its own.",
        )


def _named_in_guest(machine: Machine, identity: Identity) -> Machine:
    """Ramet's own guests take this key for their hostname at every boot: a clone's must not be its source's."""
    if identity.plan is None or HOSTNAME_KEY not in machine.extra_config:
        return machine
    return machine.changed(extra_config={**machine.extra_config, HOSTNAME_KEY: identity.plan.hostname})


def _check_addresses(identities: Sequence[Identity]) -> None:
    """What is set by hand is unique among the clones: {n} makes it so."""
    seen: set[str] = set()
    for identity in identities:
        for nic in identity.plan.nics if identity.plan else ():
            if nic.address in (DHCP, KEEP):
                continue
            if nic.address in seen:
                raise UsageError(
                    f"The address {nic.address} would belong to several clones.",
                    hint="Count with {n}: 10.0.0.{n+9}/24.",
                )
            seen.add(nic.address)


def _fenced(live: LiveMachine, machine: Machine) -> frozenset[str]:
    """NICs that go into a fence, where the source's MAC and address are the right ones."""
    networks = ((nic.id, live.rooms.book.network(nic.network) if nic.network else None) for nic in machine.nics)
    return frozenset(nic_id for nic_id, network in networks if network is not None and network.fenced)


def _check_process(live: LiveMachine) -> None:
    """The fresh QEMU must be the binary that wrote the device state."""
    process = live.vm.process
    if process is not None and process.qemu_build != live.rooms.qemu.build_id:
        raise UnsupportedError(
            f"QEMU was upgraded on disk since {live.name!r} started (it runs {process.qemu_version}).",
            hint="Restart the VM: a clone must run the same QEMU as its source.",
        )
    if not live.run_dir.fork.exists():
        raise UnsupportedError(
            f"{live.name!r} runs without the fork library.", hint="Restart it; 'ramet doctor' says whether it can load."
        )


def clone_machine(live: LiveMachine, request: CloneVm, name: str) -> Machine:
    """The clone's hardware: its source's, with names, addresses and networks of its own."""
    source = live.vm.machine
    changes = {change.id: change for change in request.nics}
    unknown = sorted(set(changes) - {nic.id for nic in source.nics})
    if unknown:
        have = ", ".join(nic.id for nic in source.nics) or "none"
        raise NotFoundError(f"{live.name!r} has no NIC {unknown[0]!r}.", hint=f"It has: {have}.")
    update: dict[str, object] = {
        "name": name,
        "nics": tuple(_clone_nic(live, nic, changes.get(nic.id), request) for nic in source.nics),
        "extra_config": {**_inherited(source), **request.extra_config},
        "autostart": False,
        "cpu_limit_percent": _limit(source, request),
        "memory_target_mib": _memory_target(source, request),
        "uuid": request.uuid or Machine.model_fields["uuid"].get_default(call_default_factory=True),
    }
    return source.changed(**update)


def _inherited(source: Machine) -> dict[str, str]:
    """But for the mark of a trial's clone: whoever clones one means to keep what he gets."""
    return {key: value for key, value in source.extra_config.items() if key != TRY_MARK}


def _limit(source: Machine, request: CloneVm) -> int | None:
    return source.cpu_limit_percent if request.cpu_limit_percent is None else request.cpu_limit_percent or None


def _memory_target(source: Machine, request: CloneVm) -> int | None:
    if request.memory_target_mib is not None and request.memory_target_mib > source.memory_mib:
        raise UsageError(
            f"A clone has its source's memory, {source.memory_mib} MiB, and cannot have {request.memory_target_mib}.",
            hint="Its target can only be less.",
        )
    return request.memory_target_mib or source.memory_target_mib


def _clone_nic(live: LiveMachine, nic: Nic, change: NicChange | None, request: CloneVm) -> Nic:
    network = nic.network
    if change is not None and change.network is not None:
        network = change.network or None
    if (network == USER_NETWORK) != nic.is_user_mode:
        raise UnsupportedError(
            f"{nic.id} cannot change between user-mode networking and a port group in a clone.",
            hint="The device state differs; change it on a VM that is off.",
        )
    if network not in (None, USER_NETWORK) and live.rooms.book.network(str(network)) is None:
        raise NotFoundError(f"There is no port group {network!r}.", hint="See 'ramet network ls'.")
    wanted = nic.connected and (request.connect or not request.bare)
    connected = wanted and not request.disconnect_nics
    if change is not None and change.connected is not None:
        connected = change.connected and not request.disconnect_nics
    cloned = nic.changed(network=network, connected=connected, **_own_or_fenced(live, nic, network, change))
    if cloned.fence is not None and request.total > 1:
        raise UsageError(
            f"The fence {cloned.fence!r} has room for one clone of {live.name!r}, and several are asked for.",
            hint="Leave the fence out: each gets its own. Or clone them one by one, into fences of other names.",
        )
    live.rooms.networks.check_fence(cloned)
    return cloned


def _own_or_fenced(live: LiveMachine, nic: Nic, network: str | None, change: NicChange | None) -> dict[str, object]:
    """A MAC address of its own; or its source's, in a fence that has the source's network inside."""
    source, target = (live.rooms.book.network(name) if name else None for name in (nic.network, network))
    placed = placement(nic, source, target, change.fence if change is not None else None)
    mac = nic.mac if target is not None and target.fenced else new_mac()
    return {**placed, "mac": change.mac if change is not None and change.mac else mac}


def _check_memory(live: LiveMachine, count: int) -> None:
    """By the host's policy. A clone of a VM whose pages are merged copies them as it is born."""
    vm, process = live.vm, live.vm.process
    merged = Ksm().merged_quickly_bytes(process.pid) if process is not None else 0
    live.rooms.admission.check_clones(
        vm.name, vm.lineage_id or vm.id, vm.machine.memory_mib * MIB, count, merged_bytes=merged
    )


def _check_disk_space(live: LiveMachine, count: int) -> None:
    free, needed = live.rooms.layers.free_bytes(), DISK_RESERVE_BYTES + count * DISK_PER_CLONE_BYTES
    if free < needed:
        raise CapacityError(
            f"Only {format_bytes(free)} is free under {live.rooms.paths.layers}; {format_bytes(needed)} is needed.",
            hint="Remove VMs or images, or free space on that disk.",
        )


def _warnings(live: LiveMachine, request: CloneVm, machines: tuple[Machine, ...]) -> tuple[str, ...]:
    """A bare clone that is connected still uses its source's address, until something in the guest changes it."""
    if not request.bare:
        return ()
    source_networks = {nic.network for nic in live.vm.machine.nics if nic.connected and not nic.is_user_mode}
    shared = sorted(
        {
            str(nic.network)
            for machine in machines
            for nic in machine.nics
            if nic.connected and nic.network in source_networks
        }
    )
    return tuple(
        f"{live.name!r} and its clones are on the port group {network!r}: the source's address appears there twice "
        "until the guests change it."
        for network in shared
    )
