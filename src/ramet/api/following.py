"""Answers that come bit by bit: events as they happen, signs of life between them, an end that is a whole one.

    async for event in beating(host.events.follow(0), closing, beat_s=15.0):      # None: a sign of life is due
    await settled(generator.aclose())            # to its end, however often whoever waits is cancelled

When a client goes away, Starlette cancels its answer by a scope of anyio's, which cancels every wait in it again at
each turn of the loop. What has to be ended in a guest then needs a task of its own, and a wait in a shield.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import anyio
import structlog

from ramet.errors import RametError, StateError

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

END_S = 60.0
"""To end what was followed: longer than a guest's agent is waited for."""


class StoppingError(StateError):
    """The daemon stops, and its answers end."""


async def beating(
    events: AsyncGenerator[T, None], closing: asyncio.Event, beat_s: float
) -> AsyncGenerator[T | None, None]:
    """Each event, and None when there was none for `beat_s`. StoppingError once `closing` is set and no event is there.

    The events are closed at the end, however that comes: but an iterator that was never begun closes nothing.
    """
    stop = asyncio.ensure_future(closing.wait())
    coming = asyncio.ensure_future(anext(events))
    try:
        while True:
            await asyncio.wait({coming, stop}, timeout=beat_s, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                yield coming.result()
                coming = asyncio.ensure_future(anext(events))
            elif stop.done():
                raise StoppingError("The daemon is stopping.", state="", operation="follow")
            else:
                yield None
    except StopAsyncIteration:
        return
    finally:
        await settled(_end(events, coming, stop))


async def _end(events: AsyncGenerator[Any, None], *tasks: asyncio.Future[Any]) -> None:
    """A generator that runs cannot be closed: first whoever runs it ends."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # an event, or an error, that nobody waits for any more
    await closed(events)


async def closed(events: AsyncGenerator[Any, None]) -> None:
    """What cannot be ended because the guest or its disk is gone is none of the follower's business."""
    try:
        await events.aclose()
    except (RametError, OSError) as exc:
        log.warning("what was followed could not be ended well", error=str(exc))


async def settled(work: Awaitable[None]) -> None:
    """Wait until `work` is done, at most `END_S`, and only then be cancelled."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        deadline = asyncio.get_running_loop().time() + END_S
        while not task.done() and (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.wait({task}, timeout=left_s)
            except asyncio.CancelledError as exc:
                cancelled = exc
    if not task.done():
        task.cancel()
        log.error("what was followed did not end in time")
    elif not task.cancelled():
        task.result()
    if cancelled is not None:
        raise cancelled
