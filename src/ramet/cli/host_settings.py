"""``ramet host``: the host and its policies about memory, shown and changed while the daemon runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli.command import command, group
from ramet.cli.output import Cell, Column, Output, duration, size
from ramet.cli.session import Session

if TYPE_CHECKING:
    from ramet.model.sharing import PageSharing, PageSharingView
    from ramet.model.views import HostView

MIB = 1 << 20

app = group(
    "host",
    "This host: what it is, and whether unrelated VMs share pages.",
    examples=("ramet host show", "ramet host set page-sharing host"),
)

_NAMES = ("page-sharing",)


@command(app, "show", examples=("ramet host show", "ramet host show --json | jq .page_sharing"))
def show(session: Session) -> None:
    """Show the host, who is admitted to it, and what page sharing gains and costs."""
    view, sharing = session.client.host_view(), session.client.page_sharing()
    data = {**view.model_dump(mode="json"), "page_sharing": sharing.model_dump(mode="json")}
    session.show(data, lambda: _page(session.out, view, sharing, session.now()))


@command(app, "set", examples=("ramet host set page-sharing host", "ramet host set page-sharing off"))
def set_(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="page-sharing", autocompletion=lambda: list(_NAMES))],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="off or host", autocompletion=lambda: ["off", "host"])],
) -> None:
    """Change what the host does, from now on and after a restart.

    page-sharing host has the kernel merge pages of like content among all guests (KSM): more fit, and each can find out
    by timing what the others have in their memory. off, the default, shares inside a lineage only; pages that are
    merged are copied first, which takes memory.
    """
    _check_name(name)
    mode = _mode(value)
    session.settle(session.client.set_page_sharing(mode))
    view = session.client.page_sharing()
    session.show(view, lambda: session.out.say("page sharing is ", Cell(view.mode.value, "bold"), _aside(view)))


def _check_name(name: str) -> None:
    from difflib import get_close_matches

    from ramet.errors import UsageError

    if name not in _NAMES:
        near = get_close_matches(name, _NAMES, n=1)
        other = "Other settings stand in settings.toml, in the state folder."
        hint = f"Did you mean {near[0]!r}?" if near else f"There is: {', '.join(_NAMES)}. {other}"
        raise UsageError(f"The host has no setting {name!r} that can be changed while it runs.", hint=hint)


def _mode(value: str) -> PageSharing:
    from ramet.errors import UsageError
    from ramet.model.sharing import PageSharing

    if value not in list(PageSharing):
        raise UsageError(
            f"Page sharing is off or host, not {value!r}.",
            hint="The kernel's merging has no domains: there is nothing between the two.",
        )
    return PageSharing(value)


def _aside(view: PageSharingView) -> str:
    return f": {view.problem}" if view.problem else ""


def _page(out: Output, view: HostView, sharing: PageSharingView, now: float) -> None:
    out.facts(_host_facts(view))
    out.line()
    out.line(Cell("Page sharing", "bold"))
    out.facts(_sharing_facts(sharing, now), indent=2)
    if sharing.vms:
        out.line()
        columns = (Column("name", style="bold"), Column("merged", right=True), Column("profit", right=True))
        out.table(columns, [(vm.name, size(vm.merged_bytes), size(vm.profit_bytes)) for vm in sharing.vms])


def _host_facts(view: HostView) -> list[tuple[str, str]]:
    rights = "all" if view.privileged else "without root"
    reserve = view.settings.get("memory_reserve_mib")
    return [
        ("version", view.version),
        ("state", view.state_dir),
        ("daemon", f"pid {view.pid}, user {view.uid}, {rights}"),
        ("runs on", ", ".join(filter(None, ((view.accelerator or "").upper(), f"QEMU {view.qemu_version or '?'}")))),
        ("VMs", f"{view.vms_total}, {view.vms_on} on"),
        ("admission", str(view.settings.get("admission", ""))),
        ("reserve", size(reserve * MIB) if isinstance(reserve, int) else ""),
    ]


def _sharing_facts(view: PageSharingView, now: float) -> list[tuple[str, str]]:
    mode = view.mode.value + (", some pages are still merged" if view.unmerging else "")
    if view.since is None:
        return [("mode", mode), ("problem", view.problem or "")]
    cost = f"{view.cpu_s:g} s of processor, {view.cpu_percent:g} %" if view.cpu_s is not None else "unknown"
    pace = f"{view.pages_to_scan} pages every {view.sleep_ms} ms, {view.full_scans} times through all"
    return [
        ("mode", f"{mode}, for {duration(now - view.since)}"),
        ("problem", view.problem or ""),
        ("gain", f"{size(view.saved_bytes)} saved by {size(view.shared_bytes)} that stand for more"),
        ("profit", size(view.profit_bytes)),
        ("cost", cost),
        ("ksmd", f"{'runs' if view.running else 'stands still'}, {pace}"),
        ("to switch off", f"up to {size(view.unmerge_bytes)} of memory"),
    ]
