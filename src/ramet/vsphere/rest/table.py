"""One operation of the automation API: everything that REST, JSON-RPC and the reference need to know of it.

    Operation.of("com.vmware.vcenter.VM", "list", "GET", "/vcenter/vm", list_vms)

The function is `async (ask, **parameters) -> result`; its annotations are the parameters' types. A parameter that the
path has comes from there; `filter`, and what a GET has beside it, from the query; `spec` alone is the body itself.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ramet.vsphere.rest.errors import ApiError

__all__ = ["Operation", "Table"]

Function = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    service: str
    """'com.vmware.vcenter.VM'"""
    name: str
    """'instant_clone'"""
    verb: str
    path: str
    """Below /api: '/vcenter/vm/{vm}'."""
    action: str | None
    """What ?action= must be."""
    function: Function
    parameters: type[BaseModel]
    old_path: str
    """Below /rest, where it is another."""
    is_anonymous: bool
    created: bool
    """REST answers 201."""

    @classmethod
    def of(
        cls, service: str, name: str, verb: str, path: str, function: Function, *, old_path: str | None = None,
        is_anonymous: bool = False, created: bool = False,
    ) -> Operation:  # fmt: skip
        path, _, action = path.partition("?action=")
        parameters = _parameters(function, f"{service}.{name}")
        return cls(
            service, name, verb, path, action or None, function, parameters, old_path or path, is_anonymous, created
        )

    @property
    def body_is_spec(self) -> bool:
        in_path = set(re.findall(r"{(\w+)}", self.path))
        return set(self.parameters.model_fields) - in_path == {"spec"}

    def parse(self, given: dict[str, Any]) -> dict[str, Any]:
        """The parameters in their types; invalid_argument says which one is wrong."""
        try:
            made = self.parameters.model_validate(given)
        except ValidationError as exc:
            raise ApiError("invalid_argument", _explain(exc)) from exc
        return {name: getattr(made, name) for name in type(made).model_fields}


def _parameters(function: Function, name: str) -> type[BaseModel]:
    hints = get_type_hints(function, include_extras=True)
    wanted = list(inspect.signature(function).parameters.values())[1:]
    fields: dict[str, Any] = {
        one.name: (hints[one.name], ... if one.default is inspect.Parameter.empty else one.default) for one in wanted
    }
    made: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    return made


def _explain(exc: ValidationError) -> str:
    wrong = exc.errors(include_url=False, include_context=False, include_input=False)
    return " ".join(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}." for one in wrong[:5])


@dataclass(frozen=True, slots=True)
class Route:
    pattern: re.Pattern[str]
    operation: Operation


class Table:
    """All operations, found by path or by name."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.operations = tuple(operations)
        self._named = {(one.service.lower(), one.name): one for one in self.operations}
        self._routes = {
            "api": [Route(_pattern(one.path), one) for one in self.operations],
            "rest": [Route(_pattern(one.old_path), one) for one in self.operations],
        }

    def named(self, service: str, name: str) -> Operation | None:
        return self._named.get((service.lower(), name))

    def routed(
        self, prefix: str, verb: str, path: str, action: str | None
    ) -> tuple[Operation, dict[str, str]] | None:
        """The operation at a path below 'api' or 'rest', and what the path says. The action may be its last step."""
        for tried, step in ((path, action), _last_step(path)):
            for route in self._routes[prefix]:
                match = route.pattern.match(tried)
                if match and route.operation.verb == verb and route.operation.action == step:
                    return route.operation, match.groupdict()
        return None

    def verbs(self, prefix: str, path: str) -> set[str]:
        """What could be done at a path, when what was asked could not."""
        return {route.operation.verb for route in self._routes[prefix] if route.pattern.match(path)}


def _last_step(path: str) -> tuple[str, str | None]:
    before, _, step = path.rpartition("/")
    return before, step or None


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]{1,200})", path) + r"/?\Z")
