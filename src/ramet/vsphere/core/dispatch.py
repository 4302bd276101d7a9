"""From a name on the wire to what does it: the one door through which every protocol calls.

    result = await invoke(world, call, "vm-17", "InstantClone_Task", {"spec": spec})
    offered(mo, name) -> Offer             # MethodNotFound, NotSupported
    reached(world, call, moid) -> Mo       # ManagedObjectNotFound; before a login NotAuthenticated, whatever there is

Raises `vmodl.MethodFault` and nothing else: what the caller did wrong, what is not supported, what failed, and for a
bug of ours a SystemError that tells nothing of the inside.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from ramet.vsphere.core.calls import CURRENT, Call
from ramet.vsphere.core.faults import fault_of
from ramet.vsphere.core.objects import Mo, Operation
from ramet.vsphere.core.world import World
from ramet.vsphere.types import Support, operation_info, vmodl, wire_name

log = structlog.stdlib.get_logger(__name__)

_FETCH_WITHOUT_LOGIN = ("ServiceInstance", "SessionManager")


@dataclass(frozen=True, slots=True)
class Offer:
    info: Any
    """What the schema says of it."""
    operation: Operation | None
    """None for Fetch, which every object has."""


def offered(mo: Mo, name: str) -> Offer:
    """MethodNotFound when the type has no such method, NotSupported when this server has it not."""
    info = operation_info(mo.wire, name)
    if info is None:
        raise vmodl.fault.MethodNotFound(
            receiver=mo.ref, method=name, msg=f"{wire_name(mo.wire)} has no method {name}."
        )
    operation = mo.operations.get(name)
    if operation is None and name != "Fetch":
        raise vmodl.fault.NotSupported(msg=f"{name} of {wire_name(mo.wire)} is not supported by this server.")
    return Offer(info, operation)


def reached(world: World, call: Call, moid: str, reference: Any = None) -> Mo:
    """The object that a client addresses, if it may know of it. To a stranger all look alike, those that there are not
    too: but for the few that somebody needs in order to log in, whose ids are the same everywhere."""
    if call.session is None:
        mo = world.get(moid)
        if mo is None or not _is_open(mo):
            call.known_or_fault(reference or Support.ManagedObject(moid))
    return world.find(moid, call, reference)


def _is_open(mo: Mo) -> bool:
    return wire_name(mo.wire) in _FETCH_WITHOUT_LOGIN or any(one.anonymous for one in mo.operations.values())


async def invoke(world: World, call: Call, moid: str, name: str, arguments: dict[str, Any]) -> Any:
    """Do it: find, check privileges and arguments, call. The result is of the type that the schema declares."""
    attendant, fault, token = world.attendant, None, CURRENT.set(call)
    if attendant is not None:
        attendant.came(call)
    try:
        return await _invoke(world, call, moid, name, arguments)
    except asyncio.CancelledError:
        fault = vmodl.fault.RequestCanceled()
        raise
    except Exception as exc:
        fault = fault_of(exc)
        if fault is None:
            log.exception("a call failed by a bug of ours", object=moid, method=name)
            fault = vmodl.fault.SystemError(
                reason="Internal error.", msg="Something went wrong inside the server; its log has the details."
            )
        raise fault from exc
    finally:
        CURRENT.reset(token)
        if attendant is not None:
            attendant.went(call, moid, name, fault)


async def _invoke(world: World, call: Call, moid: str, name: str, arguments: dict[str, Any]) -> Any:
    mo = reached(world, call, moid)
    offer = offered(mo, name)
    _admit(mo, offer, call, arguments)
    check_arguments(offer.info, arguments)
    if offer.operation is None:
        return await mo.fetch(call, **arguments)
    return await offer.operation.function(mo, call, **arguments)


def _admit(mo: Mo, offer: Offer, call: Call, arguments: dict[str, Any]) -> None:
    if offer.operation is None:
        if wire_name(mo.wire) not in _FETCH_WITHOUT_LOGIN:
            call.require("System.View", mo)
    elif not offer.operation.anonymous:
        call.require(offer.operation.privilege or offer.info.privId or "System.View", mo)
        _admit_arguments(mo, offer.info, call, arguments)


def _admit_arguments(mo: Mo, info: Any, call: Call, arguments: dict[str, Any]) -> None:
    """Of some parameters the schema says what the caller must be allowed to do with what they refer to."""
    for parameter in info.params:
        value = arguments.get(parameter.name)
        if parameter.privId and value is not None:
            call.require(parameter.privId, mo, value if isinstance(value, Support.ManagedObject) else None)


def check_arguments(info: Any, arguments: dict[str, Any]) -> None:
    """InvalidArgument for a required parameter that is missing. Parsers have seen to names and types."""
    for parameter in info.params:
        if not parameter.flags & Support.F_OPTIONAL and arguments.get(parameter.name) is None:
            if issubclass(parameter.type, Support.Array):
                continue  # an empty one leaves no trace on the wire
            raise vmodl.fault.InvalidArgument(
                invalidProperty=parameter.name, msg=f"The parameter {parameter.name!r} is required."
            )
