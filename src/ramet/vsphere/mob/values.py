"""Values as tables and links: whatever the schema can say, so that it can be followed by clicking.

    shelf = Shelf(world, call)
    shelf.properties([(info, value), …], moid, path) -> Markup      # NAME, TYPE, VALUE
    shelf.value(value, moid, path) -> Markup
    shelf.whole(value) -> Markup                    # a result or a fault: all of it, nothing behind links
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyVmomi import Iso8601

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.world import World
from ramet.vsphere.mob.markup import Markup, join, tag
from ramet.vsphere.mob.naming import data_url, object_name, object_url, shown_type
from ramet.vsphere.types import Support, vmodl, wire_name

__all__ = ["UNSET", "Shelf", "badge", "item_key", "table"]

FEW = 8
"""Elements of an array that stand in a table's cell; a link leads to the rest."""
MANY = 2000
UNSET = tag("span", "Unset", class_="unset")
_TONES = {
    "poweredOn": "good", "success": "good", "connected": "good", "green": "good", "guestToolsRunning": "good",
    "running": "busy", "queued": "busy", "suspended": "busy", "yellow": "busy",
    "error": "bad", "disconnected": "bad", "red": "bad",
}  # fmt: skip


def table(*heads: str, rows: Iterable[Markup], label: str) -> Markup:
    cells = join(tag("th", head, scope="col", class_="type" if head == "TYPE" else None) for head in heads)
    body = tag("table", tag("thead", tag("tr", cells)), tag("tbody", join(rows)), aria_label=label)
    return tag("div", body, class_="card")


def badge(word: str) -> Markup:
    return tag("span", word, class_=f"badge {_TONES.get(word, '')}".strip())


def item_key(item: Any, index: int) -> str:
    """What stands in brackets for an element: its key, or its place when it has none."""
    key = getattr(item, "key", None)
    if isinstance(key, bool) or not isinstance(key, int | str):
        return str(index)
    return str(key) if isinstance(key, int) else f'"{key}"'


@dataclass(frozen=True, slots=True)
class Shelf:
    world: World
    call: Call

    def properties(self, found: Iterable[tuple[Any, Any]], moid: str, path: str = "") -> Markup:
        """A row for each property: what the schema says of it, and its value; None is unset."""
        rows = (
            tag(
                "tr",
                tag("th", info.name, scope="row"),
                tag("td", shown_type(info.type), class_="type"),
                tag("td", self.value(value, moid, f"{path}.{info.name}" if path else info.name), class_="value"),
                class_="empty" if value is None or _is_empty(value) else None,
            )
            for info, value in sorted(found, key=lambda one: str(one[0].name).lower())
            if info.name not in ("dynamicType", "dynamicProperty")
        )
        return table("NAME", "TYPE", "VALUE", rows=rows, label="Properties")

    def value(self, value: Any, moid: str, path: str) -> Markup:
        """In a cell: short, with links to what is inside."""
        if value is None:
            return UNSET
        if isinstance(value, list):
            return self._array(value, moid, path)
        if isinstance(value, Support.DataObject | vmodl.MethodFault):
            return tag("a", _label(value), href=data_url(moid, path))
        return self.plain(value)

    def plain(self, value: Any) -> Markup:
        if isinstance(value, Support.ManagedObject):
            return self.link(value)
        if isinstance(value, Support.Enum):
            return badge(str(value))
        text = _text(value)
        return tag("pre", text) if "\n" in text else join([text])

    def link(self, reference: Any) -> Markup:
        """To a managed object, with its name beside it."""
        mo = self.world.get(reference._moId, self.call)
        anchor = tag("a", reference._moId, href=object_url(reference._moId))
        name = object_name(mo) if mo is not None else ""
        if not name or name == reference._moId:
            return anchor
        return join([anchor, " ", tag("span", f"({name})", class_="soft")])

    def _array(self, value: list[Any], moid: str, path: str) -> Markup:
        if not value:
            return UNSET
        rows = [tag("li", self._element(one, i, moid, path)) for i, one in enumerate(value[:FEW])]
        if len(value) > FEW:
            rows.append(tag("li", tag("a", f"all {len(value)} …", href=data_url(moid, path))))
        return tag("ul", join(rows))

    def _element(self, one: Any, index: int, moid: str, path: str) -> Markup:
        if not isinstance(one, Support.DataObject | vmodl.MethodFault):
            return self.plain(one)
        key = item_key(one, index)
        name = f"{path.rpartition('.')[2]}[{key}]"
        return join(
            [tag("a", name, href=data_url(moid, f"{path}[{key}]")), " ", tag("span", _label(one), class_="soft")]
        )

    def elements(self, value: list[Any], moid: str, path: str) -> Markup:
        """The page of an array: each element a row."""
        rows = (
            tag(
                "tr",
                tag("th", item_key(one, i), scope="row"),
                tag("td", shown_type(type(one)), class_="type"),
                tag("td", self._element(one, i, moid, path), class_="value"),
            )
            for i, one in enumerate(value[:MANY])
        )
        more = tag("p", f"{len(value) - MANY} more are not shown.", class_="soft") if len(value) > MANY else None
        return join([table("KEY", "TYPE", "VALUE", rows=rows, label="Elements"), more])

    def whole(self, value: Any, depth: int = 0) -> Markup:
        """All of a value that no path leads to: a method's result, a fault."""
        if value is None:
            return UNSET
        if isinstance(value, list):
            return tag("ul", join(tag("li", self.whole(one, depth + 1)) for one in value[:MANY])) if value else UNSET
        if not isinstance(value, Support.DataObject | vmodl.MethodFault) or depth > 20:
            return self.plain(value)
        rows = (
            tag(
                "tr",
                tag("th", info.name, scope="row"),
                tag("td", shown_type(info.type), class_="type"),
                tag("td", self.whole(getattr(value, info.name, None), depth + 1), class_="value"),
            )
            for info in value._GetPropertyList()
            if info.name not in ("dynamicType", "dynamicProperty", "msg")
        )
        return table("NAME", "TYPE", "VALUE", rows=rows, label=wire_name(type(value)))


def _is_empty(value: Any) -> bool:
    return isinstance(value, list) and not value


def _label(value: Any) -> str:
    """A data object in a few words: its own label when it has one."""
    kind = wire_name(type(value))
    if isinstance(value, vmodl.MethodFault):
        return f"{kind}: {value.msg}" if value.msg else kind
    described = getattr(getattr(value, "deviceInfo", None), "label", None)
    named = described or getattr(value, "name", None) or getattr(value, "label", None)
    if not named and hasattr(value, "value") and isinstance(getattr(value, "key", None), str):
        named = _text(value.value)
    return f"{kind} ({str(named)[:80]})" if named and isinstance(named, str) else kind


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return str(Iso8601.ISO8601Format(value))
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, type):
        return wire_name(value) if hasattr(value, "_wsdlName") else value.__name__
    if isinstance(value, Support.ManagedMethod):
        return str(value.info.wsdlName)
    return str(value)
