"""A FilterSpec, checked and made ready to be carried out, many times if need be.

    plan = plan_of(spec, version)            # InvalidProperty, InvalidType, InvalidArgument
    plan.roots                               the objects to begin with, and the traversals from each
    plan.paths_for(type(mo)) -> paths to read of objects of that class, or None: they are not reported
    plan.is_reached(kind) -> whether objects of a type that came, went or moved may change the selection

A selection spec that is only a name refers to the traversal spec of that name, wherever in the same FilterSpec that
stands: so recursions are written. A traversal applies to objects of its type and of kinds of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.properties import check_path, split
from ramet.vsphere.types import Support, is_a, property_info, vim, vmodl, wire_name

__all__ = ["Plan", "Root", "Step", "plan_of"]

MAX_PATHS = 10_000
_Traversal = vmodl.query.PropertyCollector.TraversalSpec


@dataclass(eq=False, slots=True)
class Step:
    """One traversal: from objects of a type, along a property, to others."""

    kind: Any
    path: str
    skip: bool
    """What is found is gone through, not reported."""
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Root:
    ref: Any
    skip: bool
    steps: list[Step]


class Plan:
    def __init__(self, spec: Any, version: str) -> None:
        self.version = version
        self.reports_missing = bool(spec.reportMissingObjectsInResults)
        self._wanted = [(one.type, self._checked_paths(one)) for one in spec.propSet]
        self._paths: dict[type[Mo], tuple[str, ...] | None] = {}
        self._named: dict[str, Step] = {}
        self._steps: dict[int, Step] = {}
        for one in spec.objectSet:
            self._collect(one.selectSet)
        self.roots = [Root(one.obj, bool(one.skip), self._resolved(one.selectSet)) for one in spec.objectSet]
        self.has_steps = bool(self._steps)
        self._reach = {self._target(step) for step in self._steps.values()}
        self._reached: dict[Any, bool] = {}

    # -- what is read --------------------------------------------------------------------------------------------------

    @staticmethod
    def _checked_paths(spec: Any) -> tuple[str, ...] | None:
        """None: all of them."""
        if not isinstance(spec.type, type) or not issubclass(spec.type, Support.ManagedObject):
            raise vmodl.fault.InvalidType(
                argument="propSet.type", msg="The type of a PropertySpec is a managed object."
            )
        if spec.all:
            return None
        if len(spec.pathSet) > MAX_PATHS:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="propSet.pathSet", msg=f"There are more than {MAX_PATHS} paths."
            )
        for path in spec.pathSet:
            check_path(spec.type, str(path))
        return tuple(dict.fromkeys(map(str, spec.pathSet)))

    def paths_for(self, kind: type[Mo]) -> tuple[str, ...] | None:
        try:
            return self._paths[kind]
        except KeyError:
            found = self._paths[kind] = self._find_paths(kind)
            return found

    def _find_paths(self, kind: type[Mo]) -> tuple[str, ...] | None:
        matching = [paths for wire, paths in self._wanted if is_a(kind.wire, wire)]
        if not matching:
            return None
        if None in matching:
            return tuple(_all_paths(kind.wire, self.version))
        return tuple(dict.fromkeys(path for paths in matching for path in paths or ()))

    # -- where it is found ---------------------------------------------------------------------------------------------

    def _collect(self, specs: Any) -> None:
        for spec in _traversals(specs):
            if not isinstance(spec.type, type) or not issubclass(spec.type, Support.ManagedObject):
                raise vmodl.fault.InvalidType(
                    argument="selectSet.type", msg="The type of a TraversalSpec is a managed object."
                )
            check_path(spec.type, str(spec.path))
            step = self._steps[id(spec)] = Step(spec.type, str(spec.path), bool(spec.skip))
            if spec.name:
                self._named.setdefault(str(spec.name), step)
            self._collect(spec.selectSet)

    def _resolved(self, specs: Any) -> list[Step]:
        found = []
        for spec in specs:
            step = self._steps.get(id(spec)) or self._named.get(str(spec.name))
            if step is None:
                raise vmodl.fault.InvalidArgument(
                    invalidProperty="selectSet.name", msg=f"No traversal spec has the name {spec.name!r}."
                )
            found.append(step)
            if isinstance(spec, _Traversal) and spec.selectSet and not step.steps:
                step.steps = self._resolved(spec.selectSet)
        return found

    @staticmethod
    def _target(step: Step) -> Any:
        kind = step.kind
        for name, _ in split(step.path):
            info = property_info(kind, name)
            kind = info.type if info is not None else Support.ManagedObject
        kind = kind.Item if issubclass(kind, Support.Array) else kind
        return kind if issubclass(kind, Support.ManagedObject) else Support.ManagedObject

    def is_reached(self, kind: Any) -> bool:
        """True too for a type that is not known."""
        found = self._reached.get(kind)
        if found is None:
            found = self._reached[kind] = kind is None or any(_touches(kind, target) for target in self._reach)
        return found


def _touches(kind: Any, target: Any) -> bool:
    if target is Support.ManagedObject:  # a view: what is in it comes and goes with the inventory
        return is_a(kind, vim.ManagedEntity)
    return is_a(kind, target) or is_a(target, kind)


def _traversals(specs: Any) -> Iterator[Any]:
    return (spec for spec in specs if isinstance(spec, _Traversal))


def _all_paths(wire: Any, version: str) -> Iterator[str]:
    for info in wire._GetPropertyList():
        if Support.IsChildVersion(version, info.version):
            yield str(info.name)


def plan_of(spec: Any, version: str) -> Plan:
    for name in ("propSet", "objectSet"):
        if not getattr(spec, name):
            raise vmodl.fault.InvalidArgument(invalidProperty=name, msg=f"A {wire_name(type(spec))} needs a {name}.")
    return Plan(spec, version)
