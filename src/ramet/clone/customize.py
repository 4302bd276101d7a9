"""Names and values for many clones out of one request: ``web-{n}``, ``10.0.0.{n+9}/24``.

{n}      the number of the clone, counted from `CloneVm.first`
{n:03}   the same with leading zeros
{n+9}    the same and nine more; {n+9:03} works as well
{name}   the clone's name
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from pydantic import ValidationError

from ramet.errors import UsageError
from ramet.model.base import explain
from ramet.model.identity import (
    Customization,
    Identity,
    IdentityState,
    NicAddress,
    Part,
    Plan,
    PlannedNic,
    TcpPolicy,
    hostname_from,
)
from ramet.model.machine import Machine, Nic, Vm
from ramet.model.requests import CloneVm
from ramet.model.units import check_name

_FIELD = re.compile(r"\{(?P<word>[a-z]+)(?:\+(?P<more>\d{1,7}))?(?::(?P<width>0\d))?\}")
_NIC_KEY = re.compile(r"^(?P<nic>net\d+)\.(?P<key>address|gateway)$")
_KEYS = ("hostname", "domain", "dns", "address", "gateway", "netN.address", "netN.gateway")


def expand(text: str, number: int, name: str = "") -> str:
    """Fill in one clone's number and name. UsageError for a field that does not exist."""

    def fill(match: re.Match[str]) -> str:
        if match["word"] == "name" and name and not match["more"] and not match["width"]:
            return name
        if match["word"] != "n":
            raise UsageError(f"{match[0]} in {text!r} stands for nothing.", hint="Use {n}, {n:03}, {n+9} or {name}.")
        return format(number + int(match["more"] or 0), match["width"] or "")

    filled = _FIELD.sub(fill, text)
    if "{" in filled or "}" in filled:
        raise UsageError(f"The braces in {text!r} stand for nothing.", hint="Use {n}, {n:03}, {n+9} or {name}.")
    return filled


def numbered_names(request: CloneVm) -> tuple[tuple[int, str], ...]:
    """(number, name) of every clone that is asked for. UsageError when a name is not usable, or stands twice."""
    numbers = range(request.first, request.first + request.total)
    template = request.name
    names = request.names if template is None else tuple(expand(template, number) for number in numbers)
    for name in names:
        try:
            check_name(name)
        except ValueError as exc:
            raise UsageError(f"{exc}.") from exc
    if len(set(names)) != len(names):
        raise UsageError("The same name stands twice.", hint="Every clone needs a name of its own.")
    return tuple(zip(numbers, names, strict=True))


def customization(values: Mapping[str, str], number: int, name: str) -> Customization:
    """One clone's values, checked. UsageError names the key that is wrong."""
    filled = {key: expand(value, number, name) for key, value in values.items()}
    try:
        return Customization(
            hostname=filled.pop("hostname", None),
            domain=filled.pop("domain", None),
            dns=tuple(filled.pop("dns", "").replace("+", " ").split()),
            nics=dict(_nic_addresses(filled)),
        )
    except ValidationError as exc:
        raise UsageError(f"The customization of {name!r}: {explain(exc)}") from exc
    except ValueError as exc:
        raise UsageError(f"The customization of {name!r}: {exc}.") from exc


def _nic_addresses(values: Mapping[str, str]) -> Iterator[tuple[str, NicAddress]]:
    nics: dict[str, dict[str, str]] = {}
    for key, value in values.items():
        match = _NIC_KEY.match(key if "." in key else f"net0.{key}")
        if match is None:
            raise UsageError(f"There is no customization {key!r}.", hint=f"There are: {', '.join(_KEYS)}.")
        nics.setdefault(match["nic"], {})[match["key"]] = value
    for nic, fields in nics.items():
        if "address" not in fields:
            raise UsageError(f"{nic} has a gateway and no address.", hint=f"Give {nic}.address as well, or leave it.")
        yield nic, NicAddress.model_validate(fields)


def identity_for(request: CloneVm, machine: Machine, source: Machine, number: int, fenced: frozenset[str]) -> Identity:
    """What this clone's guest will be asked to set. `fenced`: ids of NICs that keep their source's MAC and address."""
    if request.bare:
        return Identity(state=IdentityState.BARE)
    values = customization(request.customize, number, machine.name)
    for nic_id in values.nics:
        if nic_id not in {nic.id for nic in machine.nics}:
            raise UsageError(f"The customization names {nic_id}, and {source.name!r} has no such NIC.")
    parts = tuple(part for part in Part if part not in request.without)
    plan = Plan(
        parts=parts,
        tcp=TcpPolicy.KEEP if fenced else request.tcp,
        hostname=values.hostname or hostname_from(machine.name),
        domain=values.domain,
        dns=values.dns,
        nics=tuple(_planned(nic, source, values) for nic in machine.nics if nic.id not in fenced),
        hooks_timeout_s=request.hooks_timeout_s,
        timeout_s=request.identity_timeout_s,
    )
    return Identity(state=IdentityState.PENDING, plan=plan)


def custom_plan(vm: Vm, source_macs: Mapping[str, str], known: Collection[str], values: Customization) -> Plan:
    """For a VM that runs already. `known`: MAC addresses as its guest has them, which after a clone are its source's
    until the driver is bound anew; `source_macs` tells which card that is."""

    def old_mac(nic: Nic) -> str:
        source = source_macs.get(nic.id, nic.mac)
        return source if nic.mac not in known and source in known else nic.mac

    def planned(nic: Nic) -> PlannedNic:
        wanted = values.nics.get(nic.id, NicAddress())
        return PlannedNic(id=nic.id, mac=nic.mac, old_mac=old_mac(nic), address=wanted.address, gateway=wanted.gateway)

    return Plan(
        hostname=values.hostname or hostname_from(vm.name),
        domain=values.domain,
        dns=values.dns,
        nics=tuple(planned(nic) for nic in vm.machine.nics if nic.inside is None),
    )


def _planned(nic: Nic, source: Machine, values: Customization) -> PlannedNic:
    old_mac = next(other.mac for other in source.nics if other.id == nic.id)
    wanted = values.nics.get(nic.id, NicAddress())
    return PlannedNic(id=nic.id, mac=nic.mac, old_mac=old_mac, address=wanted.address, gateway=wanted.gateway)
