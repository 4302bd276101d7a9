"""A method's form: one input for each parameter, and what came back from it.

    form(world, info, nonce, typed) -> Markup
    arguments(info, fields) -> {name: value}          # InvalidArgument, InvalidRequest

A plain value is typed as it is; everything else is XML, an array as its element repeated. What is left empty is not
sent. A parameter that must be given has its example filled in; of one that may be left out the example stands there in
grey.
"""

from __future__ import annotations

from typing import Any

from ramet.vsphere.core.world import World
from ramet.vsphere.mob.examples import example, is_plain
from ramet.vsphere.mob.markup import Markup, join, tag
from ramet.vsphere.mob.naming import method_name, shown_type
from ramet.vsphere.mob.values import table
from ramet.vsphere.types import Support, vmodl
from ramet.vsphere.wire import leaves
from ramet.vsphere.wire.fragments import FragmentError, argument, parse_fragment

__all__ = ["NONCE", "arguments", "form"]

NONCE = "vmware-session-nonce"


def form(world: World, info: Any, nonce: str, typed: dict[str, str]) -> Markup:
    """Posts to the address of its own page. `typed` is what stood in it the last time."""
    rows = [_row(world, parameter, typed.get(parameter.name)) for parameter in info.params]
    inputs = table("PARAMETER", "TYPE", "VALUE", rows=rows, label="Parameters") if rows else _nothing()
    hidden = tag("input", name=NONCE, type="hidden", value=nonce)
    button = tag("button", "Invoke ", tag("span", method_name(info)), type="submit", class_="go")
    return tag("form", hidden, inputs, tag("div", button, class_="actions"), method="post", autocomplete="off")


def _nothing() -> Markup:
    return tag("p", "This method has no parameters.", class_="sub")


def _row(world: World, parameter: Any, typed: str | None) -> Markup:
    may_be_left = bool(parameter.flags & Support.F_OPTIONAL)
    mark = tag("span", "optional", class_="opt") if may_be_left else tag("span", "required", class_="req")
    label = tag("label", parameter.name, for_=f"p-{parameter.name}")
    return tag(
        "tr",
        tag("th", label, tag("br"), mark, scope="row"),
        tag("td", shown_type(parameter.type), class_="type"),
        tag("td", _input(world, parameter, typed, may_be_left), class_="field"),
    )


def _input(world: World, parameter: Any, typed: str | None, may_be_left: bool) -> Markup:
    shown = example(world, parameter)
    text = typed if typed is not None else "" if may_be_left else shown
    name, required = parameter.name, not may_be_left and not leaves.is_array(parameter.type)
    if not is_plain(parameter.type):
        lines = str(min(max(len((text or shown).splitlines()) + 1, 3), 24))
        return tag(
            "textarea", f"\n{text}", id=f"p-{name}", name=name, rows=lines, placeholder=shown, spellcheck="false",
            required=required,
        )  # fmt: skip
    if parameter.type is bool or leaves.is_enum(parameter.type):
        return _choice(parameter, typed, may_be_left)
    kind = "password" if "assword" in name else "text"
    text = "" if kind == "password" else text
    return tag("input", id=f"p-{name}", name=name, type=kind, value=text, placeholder=shown, required=required)


def _choice(parameter: Any, typed: str | None, may_be_left: bool) -> Markup:
    words = ["true", "false"] if parameter.type is bool else list(parameter.type.values)
    chosen = typed if typed is not None else "" if may_be_left else "false" if parameter.type is bool else words[0]
    blank = [""] if may_be_left else []
    options = (tag("option", word or "(unset)", value=word, selected=word == chosen) for word in blank + words)
    return tag("select", join(options), id=f"p-{parameter.name}", name=parameter.name)


def arguments(info: Any, fields: dict[str, str]) -> dict[str, Any]:
    """What the form says, in the types of the schema. InvalidArgument, InvalidRequest."""
    found = {p.name: _value(p, fields.get(p.name, "")) for p in info.params}
    return {name: value for name, value in found.items() if value is not None}


def _value(parameter: Any, text: str) -> Any:
    if is_plain(parameter.type):
        return leaves.leaf(parameter.type, text, parameter.name) if text.strip() else None
    if not text.strip():
        return None
    if leaves.is_reference(parameter.type) and not text.lstrip().startswith("<"):
        return leaves.reference(None, text.strip(), parameter.type, parameter.name)
    try:
        return argument(parse_fragment(text), parameter)
    except FragmentError as exc:
        raise vmodl.fault.InvalidRequest(msg=f"{parameter.name}: {exc}") from exc
