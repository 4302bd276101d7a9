"""Reading the properties of many objects: prepared together, and what cannot be read is said property by property.

    await prepare_all(mos_with_paths)
    said = read(mo, paths, call) -> Said(values, faults)
    content(mo, paths, call) -> ObjectContent
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import structlog

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.faults import fault_of
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.pacing import Pace
from ramet.vsphere.core.properties import reader, root_of
from ramet.vsphere.types import make, property_info, remember, vim, vmodl

__all__ = ["Said", "content", "missing_set", "prepare_all", "read"]

log = structlog.stdlib.get_logger(__name__)

_PREPARED_AT_ONCE = 16
_PC = vmodl.query.PropertyCollector
_Content, _Missing, _Property = _PC.ObjectContent, _PC.MissingProperty, vmodl.DynamicProperty
_Properties, _MissingSet = _Property.Array, _Missing.Array


class Said(NamedTuple):
    values: dict[str, Any]
    """What is unset is not in it."""
    faults: dict[str, Any]


async def prepare_all(objects: Iterable[tuple[Mo, tuple[str, ...]]]) -> None:
    """Let each fetch what it needs, some at a time. What cannot be fetched is unset then, and in the log."""
    waiting = [(mo, _roots(paths)) for mo, paths in objects if type(mo).prepare is not Mo.prepare]
    if not waiting:
        return
    following = iter(waiting)
    async with asyncio.TaskGroup() as group:
        for _ in range(min(_PREPARED_AT_ONCE, len(waiting))):
            group.create_task(_prepare(following), name="prepare objects")


async def _prepare(following: Iterator[tuple[Mo, frozenset[str]]]) -> None:
    pace = Pace()
    for mo, roots in following:
        try:
            await mo.prepare(roots)
        except Exception:
            log.exception("an object could not be prepared: a bug of ours", object=mo.moid)
        if pace.is_due():
            await pace.rest()


@remember(4096)
def _roots(paths: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(root_of, paths))


@remember(4096)
def _readers(kind: type[Mo], paths: tuple[str, ...]) -> tuple[tuple[str, Callable[[Mo], Any], str | None], ...]:
    """For each path what reads it, and the privilege that it takes beyond that to look."""
    return tuple((path, reader(kind, path), _privilege(kind, path)) for path in paths)


def _privilege(kind: type[Mo], path: str) -> str | None:
    needed = getattr(property_info(kind.wire, root_of(path)), "privId", None)
    return None if needed is None or needed.startswith("System.") else str(needed)


def read(mo: Mo, paths: tuple[str, ...], call: Call) -> Said:
    """Of an object that is prepared. Never an error: what fails is a fault in its place."""
    values: dict[str, Any] = {}
    faults: dict[str, Any] = {}
    for path, get, privilege in _readers(type(mo), paths):
        if privilege is not None and (call.session is None or not call.session.may(privilege)):
            faults[path] = _no_permission(mo, privilege)
            continue
        try:
            value = get(mo)
        except Exception as exc:
            faults[path] = _fault(mo, path, exc)
            continue
        if value is not None:
            values[path] = value
    return Said(values, faults)


def _no_permission(mo: Mo, privilege: str) -> Any:
    return vim.fault.NoPermission(
        object=mo.ref, privilegeId=privilege, msg=f"To see this property takes the privilege {privilege}."
    )


def _fault(mo: Mo, path: str, exc: Exception) -> Any:
    fault = fault_of(exc)
    if fault is None:
        log.error("a property cannot be read: a bug of ours", object=mo.moid, property=path, exc_info=exc)
        fault = vmodl.fault.SystemError(reason="Internal error.", msg=f"The property {path} cannot be read.")
    return fault


def content(mo: Mo, paths: tuple[str, ...], call: Call) -> Any:
    said = read(mo, paths, call)
    made = make(_Content, obj=mo.ref)
    properties = [make(_Property, name=path, val=value) for path, value in said.values.items()]
    made.__dict__["propSet"] = _Properties(properties)
    if said.faults:
        made.__dict__["missingSet"] = missing_set(said.faults)
    return made


def missing_set(faults: dict[str, Any]) -> Any:
    return _MissingSet([make(_Missing, path=path, fault=fault) for path, fault in faults.items()])
