"""Managed objects: what a class says to be one, and how it is asked.

    class Datacenter(Mo):
        wire = vim.Datacenter

        @prop("name")
        def name(self) -> str: ...

        @prop("runtime.powerState")                  # a path of its own: cheaper than the whole of `runtime`
        def power_state(self) -> str: ...

        @operation("PowerOnMultiVM_Task", privilege="VirtualMachine.Interact.PowerOn")
        async def power_on(self, call: Call, vm: Sequence[Any], option: Sequence[Any] = ()) -> Any: ...

Names of properties, operations and parameters are those of the wire. A property's function is plain and quick, and
reads memory only: what needs I/O is fetched in `prepare`, which is awaited before properties are read. It returns a
value of the declared type, or something that `properties` can make one: a number, a string, an enum's string, a list;
None is unset. A property that the schema has and the class has not is unset, or an empty array.

An operation returns the value itself, for a task the reference of its Task. Its privilege is the schema's, unless the
decorator names another; `Call.require` asks for further ones. What it leaves out of what the API promises stands in
`partial`, and `refusal` is why there is none: the reference is made from both. Errors: `vmodl.MethodFault` with `msg`
set, or any RametError, which becomes the fault that says the same (`faults.fault_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ramet.vsphere.core.calls import Call
    from ramet.vsphere.core.world import World

Getter = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """A method as a class offers it."""

    name: str
    """On the wire: 'InstantClone_Task'."""
    function: Callable[..., Any]
    """async (self, call, **parameters) -> result."""
    privilege: str | None
    """None: the schema's."""
    anonymous: bool = False
    """It may be called before a login."""
    waits: bool = False
    """It changes nothing, and waits: it is cancelled when its client has gone."""
    partial: str | None = None
    """What of it there is not, for the reference; None: all of it is there."""
    refusal: str | None = None
    """Why it is always refused."""
    fault: str = "NotSupported"
    """With what, when it is."""


def prop(path: str, *, partial: str | None = None) -> Callable[[Getter], Getter]:
    """This function is the property at that path. Several may stand on one function."""

    def mark(function: Getter) -> Getter:
        function.__dict__.setdefault("ramet_paths", []).append(path)
        if partial is not None:
            function.__dict__.setdefault("ramet_partial", {})[path] = partial
        return function

    return mark


def operation(
    name: str,
    *,
    privilege: str | None = None,
    anonymous: bool = False,
    waits: bool = False,
    partial: str | None = None,
    refusal: str | None = None,
    fault: str = "NotSupported",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """This coroutine is the operation of that name on the wire."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__dict__["ramet_operation"] = Operation(
            name, function, privilege, anonymous, waits, partial, refusal, fault
        )
        return function

    return mark


class Mo:
    """One managed object of this server. `ref` is what stands for it on the wire."""

    wire: ClassVar[Any]
    """Its type in the registry."""
    getters: ClassVar[dict[str, Getter]] = {}
    operations: ClassVar[dict[str, Operation]] = {}
    partial: ClassVar[dict[str, str]] = {}
    """By path of a property: what of it there is not."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.getters, cls.operations, cls.partial = {}, {}, {}
        for base in reversed(cls.__mro__):  # one that is composed of several has what each of them has
            for member in vars(base).values():
                for path in getattr(member, "ramet_paths", ()):
                    cls.getters[path] = member
                cls.partial.update(getattr(member, "ramet_partial", {}))
                offered = getattr(member, "ramet_operation", None)
                if offered is not None:
                    cls.operations[offered.name] = offered

    def __init__(self, world: World, moid: str) -> None:
        self.world = world
        self.moid = moid
        self.ref = self.wire(moid)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.moid}>"

    async def prepare(self, roots: Collection[str]) -> None:
        """Fetch what properties with these first names need; bounded in time, and never an error of the caller's."""

    async def fetch(self, call: Call, prop: str) -> Any:
        """Fetch(prop): one property, as clients since 8.0 read it. Overridden by nobody."""
        from ramet.vsphere.core.properties import read_now

        return await read_now(self, prop)
