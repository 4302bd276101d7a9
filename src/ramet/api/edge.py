"""The edge of the API: errors as answers, bodies within bounds, who is calling.

Every error answers ``{"error": {"code", "message", "hint", "fields"}}`` with its class's HTTP status. A bug of ours
answers InternalError; its traceback goes to the log, never to the caller.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any, TypeVar, cast

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import to_jsonable_python
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.api.contract import Host
from ramet.errors import InternalError, NotFoundError, PrivilegeError, RametError, StateError, UsageError, from_os_error

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

BODY_BOUND_BYTES = 1 << 20
TOO_LARGE = "The request's body is larger than 1 MiB."
_FILE_UPLOAD = re.compile(r"^/v1/vms/[^/]+/file$")


def _host(request: Request) -> Host:
    return cast("Host", request.app.state.host)


def _uid(request: Request) -> int | None:
    return getattr(request.state, "ramet_uid", None)


def _closing(request: Request) -> asyncio.Event:
    return cast("asyncio.Event", request.app.state.closing)


HostDep = Annotated[Host, Depends(_host)]
UidDep = Annotated[int | None, Depends(_uid)]
"""User id of the caller, from the socket's peer credentials."""
ClosingDep = Annotated[asyncio.Event, Depends(_closing)]
"""Set when the daemon stops: what waits then answers what it has."""


async def unless_closing(closing: asyncio.Event, work: Awaitable[T]) -> T | None:
    """The outcome of `work`, or None when the daemon begins to stop first; `work` is then cancelled."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await drop(task, stop)


async def drop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel, wait until they have ended, and ask nothing about how."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def answer(error: RametError, status: int | None = None) -> JSONResponse:
    body = {"error": to_jsonable_python(error.as_dict(), fallback=str)}
    return JSONResponse(body, status_code=status or error.http_status)


def install(app: FastAPI) -> None:
    """Turn every error into an answer of the one shape, and bound the bodies."""

    @app.exception_handler(RametError)
    async def _ours(request: Request, error: RametError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(OSError)
    async def _refused(request: Request, error: OSError) -> JSONResponse:
        log.warning("a request failed", path=request.url.path, exc_info=error)
        return answer(from_os_error(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(explain_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(_of_http(request, error), error.status_code)

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again for the server, which logs the traceback.
        return answer(
            InternalError(
                "Something went wrong inside Ramet.", hint="The daemon's log has the details; please report them."
            )
        )

    app.add_middleware(BoundedBodies)


def explain_request(errors: Sequence[Any]) -> UsageError:
    """The first thing that is wrong with a request, in a sentence."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return UsageError(
            "The request's body is not valid JSON.", hint=str(first.get("ctx", {}).get("error", "")) or None
        )
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    where = ".".join(place) or "the request"
    return UsageError(f"{where}: {first['msg'].removeprefix('Value error, ')}.", field=where)


def _of_http(request: Request, error: HTTPException) -> RametError:
    if error.status_code == 404:
        return NotFoundError(f"There is nothing at {request.url.path}.", hint="See /v1/openapi.json.")
    if error.status_code == 405:
        return UsageError(f"{request.method} cannot be done at {request.url.path}.", hint="See /v1/openapi.json.")
    if error.status_code == 403:
        return PrivilegeError(str(error.detail))
    return UsageError(str(error.detail)) if error.status_code < 500 else StateError(str(error.detail))


class BoundedBodies:
    """Refuses a body above 1 MiB as soon as that is known; uploads of files are streamed, and have no bound here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _FILE_UPLOAD.match(scope["path"]):
            await self._app(scope, receive, send)
            return
        left = BODY_BOUND_BYTES
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(declared) > left:  # the server has checked that it is a number
            await _refuse(scope, receive, send)
            return

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, TOO_LARGE)
            return message

        await self._app(scope, bounded, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    response = answer(UsageError(TOO_LARGE), 413)
    response.headers["connection"] = "close"  # the rest of the body is not read
    await response(scope, receive, send)
