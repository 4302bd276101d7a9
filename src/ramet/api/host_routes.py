"""Routes of the host: tasks, events, lineage, checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import cast

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ramet.api.contract import Host
from ramet.api.edge import ClosingDep, HostDep, unless_closing
from ramet.api.following import StoppingError, beating
from ramet.model.host import Event, Task
from ramet.model.views import CheckView, HostView, TreeNode

router = APIRouter(prefix="/v1")

LONGEST_WAIT_S = 60.0
_BEAT_S = 15.0
"""Between two signs of life on a quiet stream of events: so that either side learns that the other is gone."""


@router.get("/tasks", operation_id="list_tasks", summary="List tasks", tags=["tasks"])
async def list_tasks(host: HostDep) -> list[Task]:
    """Those that run and those that ended lately, newest first."""
    return host.tasks.list()


@router.get("/tasks/{task_id}", operation_id="get_task", summary="Show a task, or wait for it", tags=["tasks"])
async def get_task(
    task_id: str,
    host: HostDep,
    closing: ClosingDep,
    wait_s: float = Query(0.0, ge=0, le=LONGEST_WAIT_S, description="Wait so long for its end, or for news."),
    since: int | None = Query(None, description="News: a `version` above this one. Left out: only its end."),
) -> Task:
    """Answers at once when the task has ended; else when there is news, when the time is over, or the daemon stops."""
    if wait_s > 0:
        await unless_closing(closing, host.tasks.wait(task_id, wait_s, since))
    return host.tasks.get(task_id)


@router.post(
    "/tasks/{task_id}/cancel", status_code=202, operation_id="cancel_task", summary="Cancel a task", tags=["tasks"]
)
async def cancel_task(task_id: str, host: HostDep) -> Task:
    """Needs a task that is `cancellable`. What it had begun is undone; wait for the task to see its end."""
    return await host.tasks.cancel(task_id)


@router.get(
    "/events",
    operation_id="list_events",
    summary="List events, or follow them",
    tags=["host"],
    response_model=list[Event],
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def list_events(
    host: HostDep,
    closing: ClosingDep,
    since: int | None = Query(None, ge=0, description="Only events after this number."),
    limit: int = Query(1000, ge=1, le=10_000, description="The last so many; not with `follow`."),
    follow: bool = Query(False, description="Go on with new ones, as server-sent events."),
) -> Response:
    """With `follow`, events come as they happen, with `id` their number; without `since`, from now on.

    Ask again with the last number seen after a break: nothing is missed, or an event `events.lost` says how many.
    """
    if follow:
        return StreamingResponse(_stream(host, closing, since), media_type="text/event-stream")
    events = host.events.recent(limit, since or 0)
    return JSONResponse([event.model_dump(mode="json") for event in events])


async def _stream(host: Host, closing: asyncio.Event, since: int | None) -> AsyncIterator[str]:
    yield ": events\n\n"  # the headers go out now, not with the first event
    events = cast("AsyncGenerator[Event, None]", host.events.follow(since))
    with suppress(StoppingError):
        async with aclosing(beating(events, closing, _BEAT_S)) as coming:
            async for event in coming:
                yield _sent(event) if event is not None else ":\n\n"


def _sent(event: Event) -> str:
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"


@router.get("/tree", operation_id="tree", summary="Lineage of all VMs", tags=["host"])
async def tree(host: HostDep) -> list[TreeNode]:
    """Who was cloned from whom: a record for people, never a dependency."""
    return await host.tree()


@router.get("/host", operation_id="host_view", summary="This host and its daemon", tags=["host"])
async def host_view(host: HostDep) -> HostView:
    """Version, QEMU, accelerator, privileges, settings."""
    return await host.host_view()


@router.get("/doctor", operation_id="doctor", summary="Check this host", tags=["host"])
async def doctor(host: HostDep) -> list[CheckView]:
    """What is there, what is missing, and what to do about it."""
    return await host.doctor()


@router.post("/selftest", status_code=202, operation_id="selftest", summary="Clone a small guest here", tags=["host"])
async def selftest(host: HostDep) -> Task:
    """Boots the micro guest, clones it live and frozen, compares checksums. The task's result is a list of checks."""
    return await host.selftest()
