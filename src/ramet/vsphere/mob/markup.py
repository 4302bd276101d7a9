"""HTML that is escaped by construction: text is text until `tag` makes an element of it.

    tag("a", "vm-1 <&>", href="?moid=vm-1") -> Markup
    join(pieces) -> Markup

Attributes stand in the order in which they are given: scripts look for some by regular expression.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["Child", "Markup", "join", "tag"]

_VOID = {"input", "meta", "link", "br", "hr"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Markup | None


def tag(name: str, /, *children: Child, **attributes: str | bool | None) -> Markup:
    """An element. `class_` and `for_` lose their line, other lines become hyphens; None and False leave it out."""
    opening = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{join(children)}</{name}>")


def _attribute(key: str, value: str | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(value)}"'


def join(children: Iterable[Child], between: str = "") -> Markup:
    return Markup(between.join(one if isinstance(one, Markup) else escape(one) for one in children if one is not None))
