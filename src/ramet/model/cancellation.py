"""Work that a cancellation must not cut in two."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def to_its_end(work: Coroutine[Any, Any, _T]) -> tuple[_T, bool]:
    """Await `work`, which is bounded by itself, however often the caller is cancelled; its result, and whether it was.

    When `work` fails its error is raised, unless the caller was cancelled: then that is what is raised.
    """
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled and task.exception() is not None:
        raise asyncio.CancelledError from task.exception()
    return task.result(), cancelled


async def uncut(work: Coroutine[Any, Any, _T]) -> _T:
    """Like `to_its_end`, and a cancellation is raised once `work` has ended."""
    result, cancelled = await to_its_end(work)
    if cancelled:
        raise asyncio.CancelledError
    return result
