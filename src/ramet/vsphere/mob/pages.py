"""What the pages show: an object, a value inside of one, a method and what it answered, what was found.

    pages = Pages(world, call)
    await pages.object(mo), await pages.data(mo, path) -> bytes
    pages.method(mo, info, nonce, typed, outcome), await pages.found(text), pages.refused(title, sentence) -> bytes
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.properties import value_at
from ramet.vsphere.core.world import World
from ramet.vsphere.mob import walking
from ramet.vsphere.mob.forms import form
from ramet.vsphere.mob.markup import Child, Markup, join, tag
from ramet.vsphere.mob.naming import find_method, method_name, method_url, object_name, object_url, shown_type
from ramet.vsphere.mob.page import Crumb, frame, note
from ramet.vsphere.mob.values import UNSET, Shelf, badge, table
from ramet.vsphere.types import Support, vim, vmodl, wire_name

__all__ = ["Outcome", "Pages"]

REFRESH_S = 2
FOUND = 300
_TURN = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to: a result, or a fault."""

    result: Any = None
    fault: Any = None


@dataclass(frozen=True, slots=True)
class Pages:
    world: World
    call: Call

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.world, self.call)

    async def object(self, mo: Mo) -> bytes:
        found = await walking.properties(mo)
        info = next((value for one, value in found if one.name == "info" and mo.wire is vim.Task), None)
        body: list[Child] = [
            *_title(mo, object_name(mo)),
            None if info is None else self._task(info),
            tag("h2", "Properties"),
            self.shelf.properties(found, mo.moid),
            *_methods(mo),
        ]
        moves = info is not None and info.state in ("queued", "running")
        return self._page(mo.moid, body, self._crumbs(mo, None), REFRESH_S if moves else None)

    def _task(self, info: Any) -> Markup:
        tone = {"success": "good", "error": "bad"}.get(str(info.state), "busy")
        progress = info.progress or 0
        parts: list[Child] = [tag("p", badge(str(info.state)), " ", self._about(info))]
        if tone == "busy":
            parts.append(tag("p", tag("progress", max="100", value=str(progress)), f" {progress} %"))
        if info.error is not None:
            parts += [tag("p", info.error.msg or wire_name(type(info.error))), self.shelf.whole(info.error)]
        if info.result is not None:
            parts.append(tag("p", "Result: ", self.shelf.whole(info.result)))
        return note(tone, "Task", *parts)

    def _about(self, info: Any) -> Markup:
        what = [str(info.descriptionId or "")]
        return join([*what, " on ", self.shelf.link(info.entity)] if info.entity is not None else what)

    async def data(self, mo: Mo, path: str) -> bytes:
        value = await walking.find(mo, path)
        shelf = self.shelf
        if isinstance(value, list):
            shown = shelf.elements(value, mo.moid, path)
        elif isinstance(value, Support.DataObject | vmodl.MethodFault):
            fields = ((info, getattr(value, info.name, None)) for info in value._GetPropertyList())
            shown = shelf.properties(fields, mo.moid, path)
        else:
            shown = tag("div", UNSET if value is None else shelf.plain(value), class_="note")
        kind = f"array of {len(value)}" if isinstance(value, list) else shown_type(type(value))
        kind = "Unset" if value is None else kind
        body: list[Child] = [tag("h1", path), tag("p", kind, class_="sub"), tag("h2", "Properties"), shown]
        return self._page(f"{mo.moid} {path}", [*body, _back(mo)], self._crumbs(mo, path))

    def method(self, mo: Mo, info: Any, nonce: str, typed: dict[str, str], outcome: Outcome | None) -> bytes:
        name = method_name(info)
        body: list[Child] = [
            tag("h1", name),
            tag("p", f"returns {_returns(info)}", class_="sub"),
            None if outcome is None else self._outcome(name, outcome),
            _limits(mo, info),
            tag("h2", "Parameters"),
            form(self.world, info, nonce, typed),
            _back(mo),
        ]
        return self._page(f"{mo.moid} {name}", body, self._crumbs(mo, name))

    def _outcome(self, name: str, outcome: Outcome) -> Markup:
        head = f"Method Invocation Result: {name}"
        if outcome.fault is not None:
            kind = wire_name(type(outcome.fault))
            said = outcome.fault.msg or kind
            return note("bad", head, tag("p", badge("error"), " ", tag("b", kind)), tag("p", said), self._all(outcome))
        if outcome.result is None:
            return note("good", head, tag("p", badge("success"), " void"))
        return note("good", head, tag("p", badge("success"), " ", shown_type(type(outcome.result))), self._all(outcome))

    def _all(self, outcome: Outcome) -> Markup:
        return self.shelf.whole(outcome.result if outcome.fault is None else outcome.fault)

    async def found(self, text: str) -> bytes:
        """Objects whose name or id has the text in it."""
        hits = sorted(await self._matching(text.strip().lower()), key=lambda hit: (hit[1].lower(), hit[0].moid))
        rows = [
            tag(
                "tr",
                tag("th", tag("a", name or mo.moid, href=object_url(mo.moid)), scope="row"),
                tag("td", wire_name(mo.wire), class_="type"),
                tag("td", mo.moid, " ", _power(mo), class_="value"),
            )
            for mo, name in hits[:FOUND]
        ]
        count = f"{len(hits)} objects" if len(hits) <= FOUND else f"The first {FOUND} of {len(hits)} objects"
        shown = table("NAME", "TYPE", "ID", rows=rows, label="Found") if rows else None
        title = "Virtual machines" if text == "vm-" else f"Found: {text}"
        body: list[Child] = [tag("h1", title), tag("p", count, class_="sub"), shown]
        return self._page("Find", body, [("Service instance", "/mob/"), ("Find", None)])

    async def _matching(self, text: str) -> list[tuple[Mo, str]]:
        found = []
        for number, mo in enumerate(self.world.of_kind(Support.ManagedObject)):
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)  # others have their turn
            name = object_name(mo)
            if text in mo.moid.lower() or text in name.lower():
                found.append((mo, name))
        return found

    def refused(self, title: str, sentence: str) -> bytes:
        body: list[Child] = [tag("h1", title), note("bad", "Refused", tag("p", sentence))]
        return self._page(title, body, [("Service instance", "/mob/"), (title, None)])

    def _page(self, title: str, body: list[Child], crumbs: list[Crumb], refresh_s: int | None = None) -> bytes:
        return frame(title, body, crumbs=crumbs, user=self.call.principal, refresh_s=refresh_s)

    def _crumbs(self, mo: Mo, rest: str | None) -> list[Crumb]:
        """From the service instance down to the object, and to what of it is shown."""
        way: list[Crumb] = []
        one: Mo | None = mo
        while one is not None and len(way) < 20:
            way.append((object_name(one) or one.moid, object_url(one.moid)))
            one = self._parent(one)
        if mo.moid != "ServiceInstance":
            way.append(("Service instance", "/mob/"))
        way.reverse()
        return [*way, (rest, None)] if rest else [*way[:-1], (way[-1][0], None)]

    def _parent(self, mo: Mo) -> Mo | None:
        above = value_at(mo, "parent") if "parent" in mo.getters else None
        return None if above is None else self.world.get(above._moId, self.call)


def _title(mo: Mo, name: str) -> list[Child]:
    kind = wire_name(mo.wire)
    below: list[Child] = [f"{kind} ", tag("code", mo.moid) if name else None, " ", _power(mo), " ", _address(mo)]
    quick = [("Methods ↓", "#methods")]
    quick += [(one, method_url(mo.moid, one)) for one in _QUICK.get(kind, ()) if _is_here(mo, one)]
    links = (tag("li", tag("a", text, href=href)) for text, href in quick)
    return [tag("h1", name or mo.moid), tag("p", join(below), class_="sub"), tag("ul", join(links), class_="quick")]


_QUICK = {
    "VirtualMachine": ("instantClone", "powerOn", "powerOff", "clone", "reconfigure", "rename", "destroy"),
    "Folder": ("createFolder", "createVm", "moveInto"),
    "Task": ("cancel",),
}
"""Methods that people mostly come for."""


def _is_here(mo: Mo, method: str) -> bool:
    info = find_method(mo.wire, method)
    return info is not None and _is_offered(mo, info)


def _address(mo: Mo) -> Markup | None:
    found = value_at(mo, "guest.ipAddress") if "guest.ipAddress" in mo.getters else None
    return None if not found else tag("code", str(found))


def _power(mo: Mo) -> Markup | None:
    found = value_at(mo, "runtime.powerState") if "runtime.powerState" in mo.getters else None
    return None if found is None else badge(str(found))


def _back(mo: Mo) -> Markup:
    name = object_name(mo)
    text = f"Back to {mo.moid}" + (f" ({name})" if name and name != mo.moid else "")
    return tag("p", tag("a", text, href=object_url(mo.moid)))


def _returns(info: Any) -> str:
    kind = info.result
    return "void" if kind is None or kind is Support.NoneType else shown_type(kind)


def _limits(mo: Mo, info: Any) -> Markup | None:
    """What this server has not of a method; None when it has all of it."""
    operation = mo.operations.get(info.wsdlName)
    if operation is None:
        return note("busy", "Not supported", tag("p", f"This server answers {info.wsdlName} with NotSupported."))
    if operation.refusal:
        return note("busy", "Not supported", tag("p", operation.refusal))
    return note("", "Supported in part", tag("p", operation.partial)) if operation.partial else None


def _is_offered(mo: Mo, info: Any) -> bool:
    operation = mo.operations.get(info.wsdlName)
    return operation is not None and not operation.refusal


def _methods(mo: Mo) -> list[Child]:
    infos = sorted(mo.wire._GetMethodList(), key=method_name)
    here = [info for info in infos if _is_offered(mo, info)]
    others = [info for info in infos if not _is_offered(mo, info)]
    found: list[Child] = [tag("h2", "Methods", id="methods")]
    found.append(_method_table(mo, here, "Methods") if here else tag("p", "None.", class_="sub"))
    if others:
        summary = tag("summary", f"{len(others)} more that this server does not support")
        found.append(tag("details", summary, _method_table(mo, others, "Methods that are not supported")))
    return found


def _method_table(mo: Mo, infos: list[Any], label: str) -> Markup:
    rows = (
        tag(
            "tr",
            tag("th", tag("a", method_name(info), href=method_url(mo.moid, method_name(info))), scope="row"),
            tag("td", _returns(info), class_="type"),
            tag("td", _signature(info), class_="value"),
        )
        for info in infos
    )
    return table("NAME", "RETURN TYPE", "PARAMETERS", rows=rows, label=label)


def _signature(info: Any) -> Markup:
    words = (f"{p.name}?" if p.flags & Support.F_OPTIONAL else p.name for p in info.params)
    return tag("span", ", ".join(words), class_="soft")


