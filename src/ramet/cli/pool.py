"""``ramet pool``: clones of a frozen VM that are ready before anyone asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import complete
from ramet.cli.command import command, group
from ramet.cli.output import Cell, Column, Output, size
from ramet.cli.session import Session, run_all

if TYPE_CHECKING:
    from ramet.model.pool import PoolView

MIB = 1 << 20

app = group(
    "pool",
    "Keep clones of a frozen VM loaded, so that the next one is there at once.",
    examples=("ramet pool set web --size 5", "ramet pool ls"),
)

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="The VM to clone.", autocompletion=complete.vms)]


@command(app, "set", examples=("ramet pool set web --size 5", "ramet pool set web --size 20 --memory-budget 512M"))
def set_(
    session: Session,
    source: Source,
    size: Annotated[int, typer.Option("--size", metavar="N", help="Clones to keep ready; 0 removes the pool.")],
    memory_budget: Annotated[
        str | None,
        typer.Option("--memory-budget", metavar="SIZE", help="What all that are ready may cost together, like 512M."),
    ] = None,
) -> None:
    """Keep N clones of a frozen VM loaded and paused.

    'ramet clone' takes one, and the pool fills again in the background. They go when the VM is thawed or stopped, some
    of them when the host's memory becomes short; while the VM is not frozen the pool waits.
    """
    from ramet.cli import parsing
    from ramet.model.pool import SetPool
    from ramet.model.units import parse_size_mib

    budget = parse_size_mib(memory_budget) if memory_budget else None
    request = parsing.request(SetPool, {"size": size, "memory_budget_mib": budget})
    view = session.client.set_pool(session.vm(source), request)
    session.show(view, lambda: session.out.say(*_after_set(view)))


def _after_set(view: PoolView) -> list[Cell | str]:
    name = Cell(view.vm, "bold")
    if view.size == 0:
        return [name, " has no pool"]
    waits = ", which fills when it is frozen" if view.state == "waiting" else ""
    return [name, f" has a pool of {view.size}{waits}"]


@command(app, "ls", examples=("ramet pool ls", "ramet pool ls --json"))
def ls(session: Session) -> None:
    """List all pools: how many clones are ready and were taken, how fast more come, and what the ready ones cost.

    The cost is memory: what is unique to the clones of their guests', and their processes' own.
    """
    pools = session.client.list_pools()
    session.show([_with_cost(view) for view in pools], lambda: _table(session.out, pools))


def _with_cost(view: PoolView) -> dict[str, object]:
    return {**view.model_dump(mode="json"), "cost_bytes": view.cost_bytes}


def _table(out: Output, pools: Sequence[PoolView]) -> None:
    columns = (
        Column("name", style="bold"),
        Column("state"),
        Column("ready", right=True),
        Column("taken", right=True),
        Column("refill", right=True),
        Column("unique", right=True),
        Column("overhead", right=True),
        Column("budget", right=True),
    )
    rows = [
        (
            view.vm,
            view.state.value,
            f"{view.ready}/{view.size}",
            str(view.taken),
            f"{view.refill_per_s:g}/s" if view.refill_per_s else "",
            size(view.unique_bytes),
            size(view.overhead_bytes),
            size(view.memory_budget_mib * MIB) if view.memory_budget_mib else "",
        )
        for view in pools
    ]
    out.table(columns, rows, empty="No pools. Keep one: ramet pool set SOURCE --size 5")
    for view in pools:
        if view.problem:
            out.warn(f"{view.vm}: {view.problem}")


@command(app, "rm", examples=("ramet pool rm web",))
def rm(
    session: Session,
    source: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="VMs with a pool.", autocompletion=complete.pools)
    ],
) -> None:
    """Give pools up: the clones that wait in them go, those that were taken stay."""

    def remove(ref: str) -> dict[str, str]:
        session.client.remove_pool(session.vm(ref))
        session.out.say("the pool of ", Cell(ref, "bold"), " is removed")
        return {"removed": ref}

    run_all(session, source, remove)
