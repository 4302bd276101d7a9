"""Routes of commands that are followed while they run, and of trials: lines of JSON that come as things happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic_core import to_jsonable_python

from ramet.api.edge import ClosingDep, HostDep, UidDep
from ramet.api.following import beating, closed, settled
from ramet.errors import RametError, StateError
from ramet.host.tasks import internal_error
from ramet.model.base import Model
from ramet.model.execution import ExecEvent, FollowExec
from ramet.model.host import Task
from ramet.model.trying import TryCommand

router = APIRouter(prefix="/v1", tags=["guests"])

NDJSON = "application/x-ndjson"
_BEAT_S = 15.0
"""Between two signs of life on a quiet stream."""
_LINES: dict[int | str, dict[str, Any]] = {
    200: {"model": ExecEvent, "description": "Lines of JSON, each an `ExecEvent`", "content": {NDJSON: {}}}
}


class Signal(Model):
    signal: str = "INT"
    """INT, TERM, KILL, HUP, QUIT, USR1, USR2, …"""


@router.post(
    "/vms/{ref}/exec/follow",
    operation_id="follow_exec",
    summary="Run a command in the guest, and follow it",
    response_class=StreamingResponse,
    responses=_LINES,
)
async def follow_exec(ref: str, request: FollowExec, host: HostDep, closing: ClosingDep) -> StreamingResponse:
    """Needs a running VM whose guest agent answers. Its output comes while it runs, as lines of JSON.

    The first is `started`, the last `exited` or `error`; `alive` comes when nothing else does. Closing the connection
    kills the command. Input and signals go to the `id` of `started`, by requests of their own.
    """
    events = host.follow_exec(ref, request)
    first = await anext(events)  # an error that comes now is still an answer
    return StreamingResponse(_lines(events, closing, first), media_type=NDJSON)


@router.put("/execs/{exec_id}/stdin", status_code=204, operation_id="write_exec", summary="Write to a followed command")
async def write_exec(
    exec_id: str,
    request: Request,
    host: HostDep,
    end: bool = Query(False, description="Nothing follows: the command sees the end of its standard input."),
) -> None:
    """The body, of at most 1 MiB, is its standard input. Answers when the guest has it: a command that does not read
    is waited for. Needs a command that was started with `stdin`."""
    await host.write_exec(exec_id, await request.body(), end)


@router.post(
    "/execs/{exec_id}/signal", status_code=204, operation_id="signal_exec", summary="Send a followed command a signal"
)
async def signal_exec(exec_id: str, request: Signal, host: HostDep) -> None:
    """To the command and all that it started."""
    await host.signal_exec(exec_id, request.signal)


@router.post("/vms/{ref}/try", status_code=202, operation_id="try_command", summary="Try a command in a clone")
async def try_command(ref: str, request: TryCommand, host: HostDep, uid: UidDep) -> Task:
    """Needs a VM that runs or is frozen, whose guest agent answers, and memory for a clone.

    The clone is on an isolated port group. The task's result is a `TryReport`: exit status, what changed, times. The
    clone is removed however the task ends, unless `keep` says otherwise; cancelling the task ends the command.
    """
    return await host.try_command(ref, request, uid)


@router.get(
    "/tasks/{task_id}/output",
    operation_id="task_output",
    summary="Follow what a task's command prints",
    tags=["tasks"],
    response_class=StreamingResponse,
    responses=_LINES,
)
async def task_output(task_id: str, host: HostDep, closing: ClosingDep) -> StreamingResponse:
    """Of a trial, from its beginning until its command has ended. Closing the connection changes nothing.

    The output is kept a while and bounded: `lost` says how much is missing.
    """
    return StreamingResponse(_lines(host.task_output(task_id), closing), media_type=NDJSON)


async def _lines(
    events: AsyncGenerator[ExecEvent, None], closing: asyncio.Event, first: ExecEvent | None = None
) -> AsyncIterator[str]:
    """One line an event; an error becomes the last line. The events are closed at the end, however that comes."""
    try:
        if first is not None:
            yield _line(first)
        async with aclosing(beating(events, closing, _BEAT_S)) as coming:
            async for event in coming:
                yield _line(event or ExecEvent(kind="alive"))
    except RametError as exc:
        yield _line(_error(exc))
    except OSError:
        yield _line(_error(StateError("The VM has gone away.", state="", operation="exec")))
    except Exception:
        yield _line(_error(internal_error()))
        raise
    finally:
        await settled(closed(events))


def _error(error: RametError) -> ExecEvent:
    return ExecEvent(kind="error", error=to_jsonable_python(error.as_dict(), fallback=str))


def _line(event: ExecEvent) -> str:
    return event.model_dump_json(exclude_none=True) + "\n"
