"""VMs, images, tasks and the rest as tables and pages: from views to `Output`, nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ramet.cli.output import Branch, Cell, Column, Output, duration, millis, size, state_cell
from ramet.model.host import Event, Image, Task
from ramet.model.machine import Stun
from ramet.model.memory import MemorySample
from ramet.model.views import (
    CheckView,
    CloneForecast,
    CloneResult,
    DiskView,
    HostView,
    MemoryView,
    NicView,
    RepairView,
    TreeNode,
    VmView,
)

MIB = 1 << 20


def address(vm: VmView) -> str:
    """The address a person would use: the first IPv4 one, else the first."""
    known = [text for nic in vm.nics for text in nic.addresses]
    return next((text for text in known if ":" not in text), known[0] if known else "")


def when(at: float | None, now: float) -> str:
    return f"{duration(now - at)} ago" if at else ""


def clock(at: float | None) -> str:
    """Local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else ""


# -- VMs ----------------------------------------------------------------------------------------------------------


def vm_list(out: Output, vms: Sequence[VmView]) -> None:
    columns = (
        Column("name", style="bold"),
        Column("state"),
        Column("cpus", right=True),
        Column("memory", right=True),
        Column("resident", right=True),
        Column("unique", right=True),
        Column("address"),
        Column("source", style="dim"),
    )
    rows = [
        (
            vm.name,
            state_cell(vm.state),
            str(vm.vcpus),
            size(vm.memory_mib * MIB),
            size(vm.memory.resident_bytes if vm.memory else None),
            size(vm.memory.unique_bytes if vm.memory else None),
            address(vm),
            vm.lineage.source_name if vm.lineage else (vm.image or ""),
        )
        for vm in vms
    ]
    out.table(columns, rows, empty="No VMs yet. Make one: ramet vm create web --image micro --start")


def vm_page(out: Output, vm: VmView, now: float) -> None:
    """Everything about one VM on one page."""
    out.line(Cell(vm.name, "bold"), "  ", *state(vm))
    out.facts(_vm_facts(vm, now), indent=2)
    if vm.memory is not None:
        _heading(out, "Memory")
        out.facts(memory_facts(vm.memory), indent=2)
    if vm.nics:
        _heading(out, "Network")
        for nic in vm.nics:
            out.line("  ", *nic_line(nic))
    if vm.disks:
        _heading(out, "Disks")
        out.tree([disk_branch(disk) for disk in vm.disks], indent=2)
    if vm.machine.extra_config:
        _heading(out, "Configuration")
        out.facts([(key, _short(value)) for key, value in sorted(vm.machine.extra_config.items())], indent=2)
    if vm.stuns:
        _heading(out, "Stuns")
        for stun in vm.stuns:
            out.line("  ", *stun_line(stun, now))


def state(vm: VmView) -> list[Cell | str]:
    """The state, with why it is paused and what is at work on the VM."""
    parts: list[Cell | str] = [state_cell(vm.state)]
    if vm.pause_reason:
        parts.append(Cell(f" ({vm.pause_reason})", "red"))
    if vm.busy_with:
        parts.append(Cell(f", busy with {vm.busy_with}", "yellow"))
    return parts


def _vm_facts(vm: VmView, now: float) -> list[tuple[str, str]]:
    running_on = ", ".join(
        part
        for part in (
            (vm.accelerator or "").upper(),
            f"QEMU {vm.qemu_version}" if vm.qemu_version else "",
            f"pid {vm.pid}" if vm.pid else "",
        )
        if part
    )
    machine = vm.machine
    extras = [f"display {machine.display}" if machine.display != "none" else "", machine.firmware.upper()]
    extras += ["autostart" if machine.autostart else ""]
    extras += [f"CPU limit {machine.cpu_limit_percent} %" if machine.cpu_limit_percent else ""]
    return [
        ("id", vm.id),
        ("uuid", vm.uuid),
        ("hardware", ", ".join([f"{vm.vcpus} vCPU", size(vm.memory_mib * MIB), *(e for e in extras if e)])),
        ("image", vm.image or ""),
        ("runs on", running_on),
        ("up", duration(now - vm.started_at) if vm.started_at and vm.pid else ""),
        ("created", f"{clock(vm.created_at)} ({when(vm.created_at, now)})" if vm.created_at else ""),
        ("cloned from", _lineage(vm, now)),
        ("identity", _identity(vm)),
        ("goes", f"in {duration(vm.expires_at - now)}, when its time is over" if vm.expires_at else ""),
        ("memory target", _target(vm)),
    ]


def _target(vm: VmView) -> str:
    """What the guest is to have, and has; nothing for one that has all of its memory and is to have it."""
    whole, seen = vm.memory_mib * MIB, vm.balloon
    parts = [size(vm.machine.memory_target_mib * MIB)] if vm.machine.memory_target_mib else []
    if seen is not None and (parts or seen.actual_bytes < whole):
        parts += [f"the guest has {size(seen.actual_bytes)}"]
    if seen is not None and seen.asked_by_host is not None:
        parts += [f"the host is short of memory and asks it to do with {size(seen.asked_by_host)}"]
    return ", ".join(parts)



def _identity(vm: VmView) -> str:
    """Nothing for a VM that was not cloned with one."""
    said = vm.identity.acknowledgement
    if vm.identity.problem:
        return f"none, off the network: {vm.identity.problem}"
    if vm.identity.holds_links_down:
        return "being set, off the network meanwhile"
    return f"its own, {said.hostname or 'hostname unchanged'}, generation {said.generation}" if said else ""


def _lineage(vm: VmView, now: float) -> str:
    if vm.lineage is None:
        return ""
    how = "while it ran" if vm.lineage.workflow == "live" else "from its freeze"
    return f"{vm.lineage.source_name}, {how}, {when(vm.lineage.at, now)}"


def memory_facts(memory: MemoryView) -> list[tuple[str, str]]:
    """Configured, resident, unique, shared; each with its share of what is resident."""

    def share(part: int) -> str:
        return f"  ({100 * part / memory.resident_bytes:.0f} % of resident)" if memory.resident_bytes else ""

    return [
        ("configured", size(memory.configured_bytes)),
        ("resident", size(memory.resident_bytes)),
        ("unique", size(memory.unique_bytes) + share(memory.unique_bytes)),
        ("shared", size(memory.shared_bytes) + share(memory.shared_bytes)),
        ("in swap", size(memory.swapped_bytes) if memory.swapped_bytes else ""),
        ("QEMU itself", size(memory.process_overhead_bytes)),
        ("page tables", size(memory.page_tables_bytes) if memory.page_tables_bytes else ""),
    ]


def nic_line(nic: NicView) -> list[Cell | str]:
    link = Cell("connected", "green") if nic.connected else Cell("link down", "yellow")
    where = nic.network or "no port group"
    addresses = ", ".join(nic.addresses)
    return [Cell(nic.id, "bold"), f"  {nic.model}  {nic.mac}  {where}  ", link, f"  {addresses}" if addresses else ""]


def disk_branch(disk: DiskView) -> Branch:
    """A disk and its chain of layers below it, topmost first."""
    depth = f", {len(disk.chain)} layer{'s' if len(disk.chain) != 1 else ''}"
    root = Branch([Cell(disk.id, "bold"), f"  {size(disk.size_bytes)}", depth])
    for layer in disk.chain:
        users = layer.shared_by
        kind = Cell("writable", "green") if layer.writable else Cell("read-only", "dim")
        shared = f", shared by {users}" if users > 1 else ""
        root.children.append(Branch([layer.id, f"  {size(layer.bytes_on_disk)}  ", kind, shared]))
    return root


def stun_line(stun: Stun, now: float) -> list[Cell | str]:
    parts = (
        ("stop", stun.stop_ms),
        ("disks", stun.snapshot_ms),
        ("state", stun.state_ms),
        ("fork", stun.fork_ms),
        ("resume", stun.resume_ms),
    )
    detail = " + ".join(f"{name} {millis(value)}" for name, value in parts)
    return [Cell(millis(stun.total_ms), "bold"), f"  {when(stun.at, now)}", Cell(f"  {detail}", "dim")]


def _heading(out: Output, text: str) -> None:
    out.line("")
    out.line(Cell(text, "bold"))


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


# -- clones and lineage ------------------------------------------------------------------------------------------


def clones(out: Output, results: Sequence[CloneResult]) -> None:
    columns = (
        Column("name", style="bold"),
        Column("id"),
        Column("stun", right=True),
        Column("running", right=True, style="bold"),
        Column("identity", right=True),
        Column("network", right=True),
        Column("address"),
    )
    rows = [_clone_row(result) for result in results if result.ok]
    if rows:
        out.table(columns, rows)


def memory_change(before: MemorySample, after: MemorySample) -> str:
    """One sentence about what a clone request cost the host."""
    more = after.spent_bytes - before.spent_bytes
    change = f"{size(abs(more))} {'more' if more >= 0 else 'less'}"
    about = "about " if after.estimated else ""
    processes = f"{after.processes} process{'es' if after.processes != 1 else ''}"
    return (
        f"The lineage takes {about}{size(after.spent_bytes)} of the host's memory now, {change} than before, "
        f"in {processes}; sharing saves {size(after.saved_bytes)}."
    )


def _clone_row(result: CloneResult) -> tuple[str, ...]:
    """Times from the request on; '-' for what the clone does not have."""
    t = result.timings_ms
    identity = millis(t.identity) if t.identity else result.identity.value if result.identity != "pending" else "-"
    return (
        result.name,
        result.id,
        millis(t.stun),
        millis(t.total),
        identity,
        millis(t.network) if t.network else "-",
        ", ".join(result.addresses.values()) or "-",
    )


def forecast(out: Output, answer: CloneForecast) -> None:
    names = ", ".join(answer.names)
    out.line(Cell("Nothing was changed. ", "bold"), f"{names} can be cloned ({answer.workflow}).")
    if answer.forecast_stun_ms is not None:
        out.line(f"The source would be stunned for about {millis(answer.forecast_stun_ms)}.")


def lineage(out: Output, roots: Sequence[TreeNode]) -> None:
    if out.quiet:
        for root in roots:
            _names(out, root)
        return
    out.tree([_node(root) for root in roots])
    if not roots:
        out.note("No VMs yet.")


def _names(out: Output, node: TreeNode) -> None:
    out.line(node.name)
    for child in node.children:
        _names(out, child)


def _node(node: TreeNode) -> Branch:
    gone = node.state in ("gone", "removed", "deleted")
    label: list[Cell | str] = [Cell(node.name, "dim" if gone else "bold"), "  ", state_cell(node.state)]
    if node.workflow:
        label.append(Cell(f"  {node.workflow} clone", "dim"))
    return Branch(label, [_node(child) for child in node.children])


# -- images, networks, tasks, events, the host ------------------------------------------------------------------


def images(out: Output, items: Sequence[Image], now: float) -> None:
    columns = (
        Column("name", style="bold"),
        Column("recipe"),
        Column("disks"),
        Column("memory", right=True),
        Column("firmware"),
        Column("made", style="dim"),
    )
    rows = [
        (
            image.name,
            image.recipe,
            ", ".join(size(bytes_) for bytes_ in image.sizes_bytes) or "none",
            size(image.memory_mib * MIB),
            "kernel" if image.kernel else image.firmware,
            when(image.created_at, now),
        )
        for image in items
    ]
    out.table(columns, rows, empty="No images yet. Build one: ramet image build debian")


def tasks(out: Output, items: Sequence[Task], now: float) -> None:
    columns = (
        Column("id", style="bold"),
        Column("kind"),
        Column("target"),
        Column("state"),
        Column("progress", right=True),
        Column("took", right=True),
        Column("started", style="dim"),
    )
    rows = [
        (
            task.id,
            task.kind,
            task.target,
            state_cell(task.state),
            f"{task.progress_percent:.0f} %",
            _took(task, now),
            when(task.created_at, now),
        )
        for task in items
    ]
    out.table(columns, rows, empty="No tasks.")


def _took(task: Task, now: float) -> str:
    if task.started_at is None:
        return ""
    return millis(1000 * ((task.ended_at or now) - task.started_at))


def task_page(out: Output, task: Task, now: float) -> None:
    out.line(Cell(task.id, "bold"), f"  {task.kind} {task.target}  ", state_cell(task.state))
    error = task.error or {}
    facts = [
        ("progress", f"{task.progress_percent:.0f} %"),
        ("doing", "" if task.state.is_final else task.doing),
        ("started", when(task.started_at, now)),
        ("took", _took(task, now)),
        ("error", str(error.get("message") or "")),
        ("hint", str(error.get("hint") or "")),
    ]
    out.facts(facts, indent=2)
    if task.steps:
        _heading(out, "Steps")
        out.facts([(s.name, millis(s.took_ms) if s.took_ms is not None else "…") for s in task.steps], indent=2)


def event(out: Output, item: Event) -> None:
    out.line(
        Cell(clock(item.at), "dim"), "  ", Cell(item.kind, "cyan"), "  ", Cell(item.vm_name or "-"), "  ", item.message
    )


def checks(out: Output, items: Sequence[CheckView], *, indent: int = 0) -> None:
    """One line a check, and what to do below those that are not well."""
    out.grid([_check(item, "→" if out.terminal else "->") for item in items], indent=indent)


def _check(item: CheckView, arrow: str) -> tuple[Sequence[Cell | str], ...]:
    remedy = [Cell(f"\n{arrow} {item.remedy}", "cyan")] if item.remedy and item.status != "ok" else []
    return ([state_cell(item.status)], [Cell(item.name, "bold")], [item.found, *remedy])


def repair(out: Output, view: RepairView) -> None:
    """What was wrong, what is kept, what is lost, and where everything is that was there before."""
    if view.aside is None:
        out.line("The inventory is whole; nothing was changed.")
        return
    out.line(f"The inventory was damaged ({view.problem}) and has been put together again.")
    kinds = {kind: "vSphere record" if kind == "vsphere" else kind for kind in view.kept}
    counts = (f"{count} {kinds[kind]}{'' if count == 1 else 's'}" for kind, count in view.kept.items() if count)
    out.facts(
        [
            ("kept", ", ".join(counts) or "nothing"),
            ("VMs", ", ".join(view.vms) or "none"),
            *(("lost", sentence) for sentence in view.lost or ("nothing that is known of",)),
            *(("changed", sentence) for sentence in view.altered),
            ("put aside", f"{len(view.layers_aside)} layers that nothing refers to"),
            ("as it was", view.aside),
        ]
    )


def host(out: Output, view: HostView) -> None:
    out.facts(
        [
            ("daemon", f"ramet {view.version}, pid {view.pid}, uid {view.uid}"),
            ("state", view.state_dir),
            ("privileged", "yes" if view.privileged else "no"),
            ("QEMU", view.qemu_version or "not found"),
            ("accelerator", (view.accelerator or "not probed").upper()),
            ("VMs", f"{view.vms_on} on, {view.vms_total} in all"),
        ]
    )
