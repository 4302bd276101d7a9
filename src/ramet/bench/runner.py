"""Runs cases one after another, on a stage of their own, and puts the report together."""

from __future__ import annotations

import time
from collections.abc import Sequence

import ramet
from ramet.bench import facts
from ramet.bench.figures import CaseResult, Facts, Report
from ramet.bench.outcome import Case, Outcome
from ramet.bench.stage import Stage, Tell, own_stage
from ramet.errors import RametError


def run(cases: Sequence[Case], tell: Tell, *, quick: bool) -> Report:
    """All of them; one that fails says so in its result and does not keep the others from running.

    Raises RametError when there is no stage to be had.
    """
    at, load_before = time.time(), facts.load()
    recipes = {recipe for case in cases for recipe in case.guests(quick=quick)}
    with own_stage(recipes, tell, quick=quick) as stage:
        command_line_ms = stage.command_line_ms()
        results = tuple(_run(case, stage, number, len(cases)) for number, case in enumerate(cases, start=1))
        found = _facts(stage, load_before, command_line_ms)
    return Report(at=at, quick=quick, facts=found, cases=results)


def _run(case: Case, stage: Stage, number: int, of: int) -> CaseResult:
    tell = stage.tell
    stage.tell = lambda doing: tell(f"[{number}/{of}] {case.name}: {doing}")
    outcome, problem, began = Outcome(), None, time.monotonic()
    try:
        case.run(stage, outcome)
    except (RametError, OSError) as exc:
        problem = str(exc)
    finally:
        stage.tell = tell
    return CaseResult(
        case=case.name,
        title=case.title,
        guest=outcome.guest,
        series=outcome.figures.series(),
        targets=tuple(outcome.targets),
        notes=tuple(outcome.notes),
        took_s=round(time.monotonic() - began, 1),
        problem=problem,
    )


def _facts(stage: Stage, load_before: float, command_line_ms: float) -> Facts:
    host = stage.client.host_view()
    return Facts(
        version=ramet.__version__,
        cores=facts.cores(),
        processor=facts.processor(),
        kernel=facts.kernel(),
        memory_mib=facts.memory_mib(),
        qemu_version=stage.qemu.version_text,
        accelerator=host.accelerator or "unknown",
        load_before=load_before,
        load_after=facts.load(),
        command_line_ms=command_line_ms,
    )
