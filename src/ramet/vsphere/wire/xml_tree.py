"""XML from whoever connects, as a small tree: bounded in size, depth and number, and without a document type.

    root = parse_tree(data)                  # XmlError, with a sentence for the caller

Names are local ones: clients differ in their prefixes, never in what they mean. Entities beyond the five plain ones
need a document type, so that none can expand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_ELEMENTS", "Element", "XmlError", "parse_tree"]

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_ELEMENTS = 50_000
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_ENCODINGS = ("utf-8", "utf8", "utf-16", "us-ascii", "ascii", "iso-8859-1")


class XmlError(ValueError):
    """What is wrong with it, in a sentence for the caller."""


@dataclass(slots=True)
class Element:
    name: str
    """Without its namespace."""
    xsi_type: str | None = None
    """As it stands there, with its prefix."""
    kind: str | None = None
    """The plain attribute `type`, of references."""
    is_nil: bool = False
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, name: str) -> Element | None:
        return next((one for one in self.children if one.name == name), None)


class _Builder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._stack: list[Element] = []
        self._texts: list[list[str]] = []
        self._number = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._number += 1
        if self._number > MAX_ELEMENTS:
            raise XmlError(f"The XML has more than {MAX_ELEMENTS} elements.")
        if len(self._stack) >= MAX_DEPTH:
            raise XmlError(f"The XML is nested more than {MAX_DEPTH} deep.")
        made = Element(tag.rpartition(" ")[2])
        if attributes:
            made.xsi_type = attributes.get(f"{_XSI} type")
            made.kind = attributes.get("type")
            made.is_nil = attributes.get(f"{_XSI} nil") in ("true", "1")
        if self._stack:
            self._stack[-1].children.append(made)
        else:
            self.root = made
        self._stack.append(made)
        self._texts.append([])

    def end(self, tag: str) -> None:
        self._stack.pop().text = "".join(self._texts.pop())

    def data(self, text: str) -> None:
        self._texts[-1].append(text)

    def doctype(self, *args: Any) -> None:
        raise XmlError("A document type is refused.")

    def declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in _ENCODINGS:
            raise XmlError("The encoding is not supported: send UTF-8.")


def parse_tree(data: bytes) -> Element:
    """The root of a document of at most MAX_BYTES."""
    if len(data) > MAX_BYTES:
        raise XmlError(f"The XML is larger than {MAX_BYTES >> 20} MiB.")
    builder = _Builder()
    parser = ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler, parser.EntityDeclHandler = builder.doctype, builder.doctype
    parser.XmlDeclHandler = builder.declaration
    try:
        parser.Parse(data, True)
    except (ExpatError, LookupError, UnicodeError) as exc:
        raise XmlError(f"This is no well-formed XML: {exc}.") from exc
    if builder.root is None:
        raise XmlError("There is no element.")
    return builder.root
