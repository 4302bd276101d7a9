"""The frame of every page: what is above, beside and below of what it shows."""

from __future__ import annotations

from collections.abc import Sequence

from ramet.vsphere.mob.markup import Child, Markup, join, tag
from ramet.vsphere.mob.style import STYLE

__all__ = ["Crumb", "frame", "note"]

Crumb = tuple[str, str | None]
"""What it says, and where it leads; None for the page itself."""


def frame(
    title: str, body: Sequence[Child], *, crumbs: Sequence[Crumb] = (), user: str = "", refresh_s: int | None = None
) -> bytes:
    """A whole page, as bytes. `refresh_s`: it shows something that changes by itself."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="refresh", content=str(refresh_s)) if refresh_s else None,
        tag("title", f"{title} – Managed Object Browser"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(STYLE)),
    )
    skip = tag("a", "Skip to the content", href="#content", class_="skip")
    main = tag("main", _crumbs(crumbs), join(body), id="content", tabindex="-1")
    page = tag("html", head, tag("body", skip, _bar(user), main, _footer()), lang="en")
    return f"<!DOCTYPE html>\n{page}\n".encode()


def _bar(user: str) -> Markup:
    search = tag(
        "form",
        tag("input", type="search", name="find", placeholder="Find by name or id", aria_label="Find by name or id"),
        tag("button", "Find", type="submit"),
        method="get", action="/mob/", role="search",
    )  # fmt: skip
    inside = [
        tag("a", "Managed Object Browser", href="/mob/", class_="brand"),
        tag("a", "Virtual machines", href="/mob/?find=vm-"),
        tag("a", "Tasks", href="/mob/?moid=TaskManager"),
        tag("span", class_="grow"),
        search,
        tag("span", user),
        tag("a", "Log out", href="/mob/logout"),
    ]
    bar = tag("div", join(inside) if user else inside[0], class_="bar")
    return tag("header", bar)


def _crumbs(crumbs: Sequence[Crumb]) -> Markup | None:
    if not crumbs:
        return None
    items = (
        tag("li", tag("a", text, href=href) if href else tag("span", text, aria_current="page"))
        for text, href in crumbs
    )
    return tag("nav", tag("ol", join(items)), class_="crumbs", aria_label="Where this is")


def _footer() -> Markup:
    return tag("footer", "The vSphere-compatible surface of Ramet.")


def note(tone: str, head: str, *body: Child) -> Markup:
    """A box that stands out: what a method answered, how a task stands."""
    return tag("section", tag("h2", head), join(body), class_=f"note {tone}".strip(), role="status")
