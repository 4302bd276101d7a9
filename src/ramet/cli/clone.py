"""``ramet clone`` and ``ramet tree``: what all of this is about."""

from __future__ import annotations

from typing import Any

import typer

from ramet.cli import clone_options as options
from ramet.cli.command import command
from ramet.cli.options import Set
from ramet.cli.session import Session


def register(app: typer.Typer) -> None:
    """Put the commands of this file into `app`."""
    command(
        app,
        "clone",
        examples=(
            "ramet clone web web-2                        # while web runs",
            "ramet clone web --count 5 --name 'web-{n}'   # five, from the same instant",
            "ramet clone web --count 9 --name 'web-{n}' --customize 'address=10.0.0.{n+9}/24,gateway=10.0.0.1'",
            "ramet clone web lab --nic net0=lab --set guestinfo.role=lab --ttl 2h",
            "ramet clone web copy --bare                  # an exact copy, links down",
            "ramet clone web web-2 --dry-run --max-stun 50",
        ),
    )(clone)
    command(app, "tree", examples=("ramet tree", "ramet tree --json"))(tree)


def clone(
    session: Session,
    source: options.Source,
    names: options.Names = None,
    count: options.Count = 1,
    name: options.Name = None,
    first: options.First = 1,
    customize: options.Customize = None,
    bare: options.Bare = False,
    without: options.Without = None,
    tcp: options.Tcp = "reset",
    hooks_timeout: options.HooksTimeout = "30s",
    identity_timeout: options.IdentityTimeout = "120s",
    wait_network: options.WaitNetwork = "10s",
    quiesce: options.Quiesce = False,
    no_freeze_hooks: options.NoFreezeHooks = False,
    ttl: options.Ttl = None,
    key: options.Key = None,
    connect: options.Connect = False,
    disconnect_nics: options.DisconnectNics = False,
    nic: options.Nic = None,
    mac: options.Mac = None,
    add_nic: options.AddNic = None,
    add_disk: options.AddDisk = None,
    cpu_limit: options.CpuLimit = None,
    memory_target: options.MemoryTarget = None,
    uuid: options.Uuid = None,
    set_: Set = None,
    no_pool: options.NoPool = False,
    dry_run: options.DryRun = False,
    max_stun: options.MaxStun = None,
) -> None:
    """Clone a running or frozen VM: its memory shared, its disks as deltas, running a moment later.

    All clones of one call start from the same instant. Each takes on an identity of its own before its links come up:
    random numbers, clock, MAC and IP address, hostname, machine-id, SSH host keys, and the guest's hooks. A clone whose
    guest does not acknowledge that stays off the network. With --json the answer is always a list, one object for each
    clone: name, id, task, timings_ms, and how it went.
    """
    from ramet.cli import parsing
    from ramet.errors import UsageError
    from ramet.model.requests import CloneVm

    if bool(names) == bool(name):
        raise UsageError("Give the clones' names, or --name with a template.", hint="See 'ramet clone --help'.")
    changes = parsing.nic_changes(nic, mac)
    session.named += [("network", change.network) for change in changes if change.network]
    fields = {
        **{"names": tuple(names or ()), "name": name, "count": count, "first": first, "key": key, "bare": bare},
        **{"tcp": tcp, "quiesce": quiesce, "connect": connect, "disconnect_nics": disconnect_nics, "uuid": uuid},
        **{"without": parsing.parts(without), "customize": parsing.customizations(customize)},
        **_times(ttl, hooks_timeout, identity_timeout, wait_network),
        **_shape(add_nic, add_disk, cpu_limit, memory_target),
        **{"nics": changes, "extra_config": parsing.keys(set_), "freeze_hooks": not no_freeze_hooks},
        **{"pool": not no_pool, "dry_run": dry_run, "max_stun_ms": max_stun},
    }
    request = parsing.request(CloneVm, fields)
    if dry_run:
        _forecast(session, source, request)
    else:
        _clone(session, source, request)


def _times(ttl: str | None, hooks: str, identity: str, network: str) -> dict[str, Any]:
    from ramet.model.units import parse_duration_s

    return {
        "ttl_s": parse_duration_s(ttl) if ttl else None,
        "hooks_timeout_s": parse_duration_s(hooks),
        "freeze_hooks_timeout_s": parse_duration_s(hooks),
        "identity_timeout_s": parse_duration_s(identity),
        "wait_network_s": parse_duration_s(network),
    }


def _shape(
    nics: list[str] | None, disks: list[str] | None, cpu_limit: int | None, memory_target: str | None
) -> dict[str, Any]:
    from ramet.cli import parsing
    from ramet.model.units import parse_size_mib

    return {
        "add_nics": tuple(parsing.nic(item) for item in nics or ()),
        "add_disks": tuple({"size_mib": parse_size_mib(size)} for size in disks or ()),
        "cpu_limit_percent": cpu_limit,
        "memory_target_mib": parse_size_mib(memory_target) if memory_target else None,
    }


def _forecast(session: Session, source: str, request: Any) -> None:
    from ramet.cli import render

    answer = session.client.forecast_clone(session.vm(source), request)
    for warning in answer.warnings:
        session.out.warn(warning)
    session.show(answer, lambda: render.forecast(session.out, answer))


def _clone(session: Session, source: str, request: Any) -> None:
    from ramet.cli import render

    task = session.settle(session.client.clone_vm(session.vm(source), request))
    if not session.out.quiet:
        task = session.client.clone_memory(task)  # measured beside the work, and there a moment after it
    results = results_of(task)
    for warning in dict.fromkeys(text for result in results for text in result.warnings):
        session.out.warn(warning)
    session.show([result.model_dump(mode="json") for result in results], lambda: render.clones(session.out, results))
    _tell_memory(session, results)
    _tell_failures(session, results)


def _tell_memory(session: Session, results: list[Any]) -> None:
    """What all clones of the request cost together."""
    from ramet.cli.render import memory_change

    memory = results[0].memory if results else None
    if memory is not None and memory.before is not None and memory.after is not None and not session.out.as_json:
        session.out.note(memory_change(memory.before, memory.after))


def _tell_failures(session: Session, results: list[Any]) -> None:
    """What is good stays and was shown; what is not decides the exit code."""
    for result in results:
        if result.error:
            session.out.error(f"{result.name}: {result.error['message']}", result.error.get("hint"))
        elif result.problem:
            again = f"See its console, then 'ramet vm identify {result.name}'."
            session.out.error(f"{result.name} runs, and stays off the network: {result.problem}", again)
    if any(result.error or result.problem for result in results):
        raise typer.Exit(1)


def results_of(task: Any) -> list[Any]:
    """The clones in a finished task's result."""
    from ramet.model.views import CloneResult

    return [CloneResult.model_validate(item) for item in task.result or []]


def tree(session: Session) -> None:
    """Draw who was cloned from whom. A record for people: no VM depends on another."""
    from ramet.cli import render

    roots = session.client.tree()
    session.show(roots, lambda: render.lineage(session.out, roots))
