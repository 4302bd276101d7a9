"""One operation, for whoever asked for it in whatever protocol: let in, parsed, done, and its errors named.

    done = await run(world, request, operation, given, credentials) -> Done(value, opened)       # ApiError
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import structlog

from ramet.vsphere.access.sessions import Sessions, UserSession
from ramet.vsphere.core.calls import CURRENT, Call
from ramet.vsphere.core.faults import fault_of
from ramet.vsphere.core.world import World
from ramet.vsphere.rest.asking import Ask
from ramet.vsphere.rest.errors import ApiError, error_of
from ramet.vsphere.rest.table import Operation
from ramet.vsphere.types import vmodl
from ramet.vsphere.wire.exchange import Request

__all__ = ["Credentials", "Done", "run"]

_REQUIRED = "com.vmware.vapi.endpoint.method.authentication.required"

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Credentials:
    secret: str | None = field(default=None, repr=False)
    """Of a session."""
    basic: tuple[str, str] | None = field(default=None, repr=False)
    """A name and a password: they open a session, and are of no other use."""


@dataclass(frozen=True, slots=True)
class Done:
    value: Any
    opened: UserSession | None = None


async def run(
    world: World, request: Request, operation: Operation, given: dict[str, Any], credentials: Credentials
) -> Done:
    """ApiError, and nothing else, when it does not come to an end."""
    try:
        return await _run(world, request, operation, given, credentials)
    except asyncio.CancelledError:
        raise
    except Exception as exc:
        raise _named(exc, operation) from exc


def _named(exc: Exception, operation: Operation) -> ApiError:
    error = error_of(exc) or error_of(fault_of(exc) or exc)
    if error is not None:
        return error
    log.error("an operation failed by a bug of ours", service=operation.service, name=operation.name, exc_info=exc)
    return ApiError("internal_server_error", "Something went wrong inside the server; its log has the details.")


async def _run(
    world: World, request: Request, operation: Operation, given: dict[str, Any], credentials: Credentials
) -> Done:
    sessions = world.part(Sessions)
    if operation.is_anonymous:
        operation.parse(given)  # what is wrong with it must not leave a session behind of which nobody knows
    session, opened = await _session(sessions, request, operation, credentials)
    arguments = operation.parse(given)
    call = Call(session, peer=request.peer, user_agent=request.headers.get("user-agent", ""), host=request.host)
    token = CURRENT.set(call)
    sessions.enter(session)
    try:
        return Done(await operation.function(Ask(world, call), **arguments), opened)
    except BaseException:
        if opened is not None:
            sessions.end(opened, "nobody was told of it")
        raise
    finally:
        sessions.leave(session)
        CURRENT.reset(token)


async def _session(
    sessions: Sessions, request: Request, operation: Operation, credentials: Credentials
) -> tuple[UserSession, UserSession | None]:
    if operation.is_anonymous and credentials.basic is not None:
        opened = await _log_in(sessions, request, credentials.basic)
        return opened, opened
    session = None if operation.is_anonymous else sessions.find(credentials.secret)
    if session is None:
        raise ApiError("unauthenticated", "Authentication required.", _REQUIRED)
    return session, None


async def _log_in(sessions: Sessions, request: Request, basic: tuple[str, str]) -> UserSession:
    try:
        return await sessions.login(*basic, peer=request.peer, user_agent=request.headers.get("user-agent", ""))
    except vmodl.MethodFault as fault:
        if isinstance(fault, vmodl.RuntimeFault):
            raise ApiError("service_unavailable", fault.msg) from fault
        raise ApiError("unauthenticated", fault.msg) from fault
