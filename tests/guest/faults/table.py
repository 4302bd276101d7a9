"""The table: which fault at which step of which workflow; and how one case of it is performed and judged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterator

import pytest

from ramet.errors import RametError, from_os_error
from ramet.machine import steps
from tests.guest.faults.blows import Blow
from tests.guest.faults.stage import PATIENCE_S, Stage
from tests.guest.faults.workflows import WORKFLOWS


def faults_of(name: str, step: str) -> Iterator[str]:
    """Those that mean something at this step of this workflow, and that no other workflow shows as well."""
    flow = WORKFLOWS[name]
    room = step.partition(".")[0]
    if name == "clone into a fence":
        yield from ("no space", "command refused", "VM killed", "port group removed")[
            0 if flow.has_child(step) else 3 :
        ]
        return
    yield from ("no space", "disk full", "command refused")
    if step in flow.forks_from:
        yield "fork refused"
    if flow.has_child(step):
        yield "VM killed"
    if flow.cancellable:
        yield "cancelled"
    if name == "clone two":
        return
    if room in ("clone", "zygote", "pool", "start", "import", "flatten"):
        yield "no process"
    if step == flow.steps[0]:
        yield from ("clock ahead", "clock back")
    if room in ("clone", "freeze", "thaw", "identity", "pool", "flatten", "try"):
        yield "source killed"
        if step in (flow.steps[0], flow.steps[-1]):
            yield from ("source stopped meanwhile", "cloned meanwhile")
    if flow.has_child(step):
        yield "removed meanwhile"


def cases() -> Iterator[tuple[str, str, str]]:
    """The whole table: workflow, step, fault."""
    for name, flow in WORKFLOWS.items():
        for step in flow.steps:
            for fault in faults_of(name, step):
                yield name, step, fault


async def perform(stage: Stage, name: str, step: str, fault: str, patch: pytest.MonkeyPatch) -> str:
    """Run a case and judge it. What came of the workflow: 'done', or the code of its error."""
    flow = WORKFLOWS[name]
    try:
        async with asyncio.timeout(PATIENCE_S * 2):
            if flow.before is not None:
                await flow.before(stage)
            async with contextlib.AsyncExitStack() as stack:
                blow = await stack.enter_async_context(_struck(stage, step, fault, patch))
                outcome = await _outcome(flow.run(stage))
                told = [await _outcome(other) for other in blow.others]
                if fault.startswith("clock"):  # nobody sets it right again
                    await stage.check()
            assert blow.struck, f"{step} was not reached"
            assert all(one != "internal" for one in (outcome, *told)), (outcome, told)
            gone = fault in ("source killed",) or (fault == "source stopped meanwhile" and "done" in told)
            await stage.check(source_killed=gone)
            stage.outcomes.append((name, step, fault, outcome))
            return outcome
    finally:
        await stage.reset()


@contextlib.asynccontextmanager
async def _struck(stage: Stage, step: str, fault: str, patch: pytest.MonkeyPatch) -> AsyncIterator[Blow]:
    with patch.context() as inner:
        blow = Blow(stage, step, fault, inner)
        inner.setattr(steps, "inject", blow)
        try:
            yield blow
        finally:
            for undo in reversed(blow.undo):
                undo()


async def _outcome(work: Awaitable[object]) -> str:
    """'done', or the code of the error that its caller is told; an error has a sentence and says what to do."""
    try:
        await work
    except OSError as exc:  # as the API's edge tells it
        return _judged(from_os_error(exc))
    except RametError as exc:
        return _judged(exc)
    return "done"


def _judged(error: RametError) -> str:
    assert error.message.endswith((".", "!", ")", "'")), error.message
    return error.code
