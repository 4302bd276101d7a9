"""The Managed Object Browser as a raw ASGI app.

    app = make_app(world)

    /mob/                           the service instance
    ?moid=vm-17                     an object
    ?moid=vm-17&doPath=config.hardware      what is inside of it
    ?moid=vm-17&method=instantClone         a method: its form, and posted there, the call
    ?find=web                       objects by name or id
    /mob/logout

The first request signs in by HTTP Basic, further ones by the cookie. A post must carry the session's nonce, from the
form: no other site has it, so that none can make a browser post here.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import Any

from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.calls import CURRENT, Call, Session
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.mob.forms import NONCE, arguments
from ramet.vsphere.mob.markup import tag
from ramet.vsphere.mob.naming import find_method
from ramet.vsphere.mob.page import frame, note
from ramet.vsphere.mob.pages import Outcome, Pages
from ramet.vsphere.mob.style import POLICY
from ramet.vsphere.types import vim, vmodl, wire_name
from ramet.vsphere.wire.exchange import COOKIE, App, Request, Response, asgi, unless_gone

__all__ = ["make_app"]

_STATE = "mob"
PATIENCE_S = 600.0
"""For a method that waits, WaitForUpdates for one: no browser waits longer."""
_HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
    ("cache-control", "no-store"),
)


def make_app(world: World) -> App:
    async def respond(request: Request) -> Response:
        if request.method not in ("GET", "HEAD", "POST"):
            return _page(frame("Method not allowed", [tag("h1", "Method not allowed")]), 405)
        if request.path.rstrip("/") == "/mob/logout":
            return await _logout(world, request)
        if request.path.rstrip("/") != "/mob":
            return _page(frame("Not found", [tag("h1", "Not found"), _home()]), 404)
        return await _signed_in(world, request)

    return asgi(respond, world)


async def _signed_in(world: World, request: Request) -> Response:
    sessions = world.part(Sessions)
    session: Session | None = sessions.find(request.cookie(COOKIE))
    opened = session is None
    if session is None:
        who = request.basic
        if who is None:
            return _who_are_you("This server wants to know who you are.")
        try:
            agent = request.headers.get("user-agent", "")
            session = await sessions.login(*who, peer=request.peer, user_agent=agent)
        except vmodl.MethodFault as fault:
            return _who_are_you(fault.msg or wire_name(type(fault)))
    call = Call(session, peer=request.peer, user_agent=request.headers.get("user-agent", ""), host=request.host)
    token = CURRENT.set(call)
    try:
        answer = await _answer(world, call, request)
    finally:
        CURRENT.reset(token)
    return replace(answer, headers=(*answer.headers, _cookie(session.secret))) if opened else answer


def _cookie(secret: str) -> tuple[str, str]:
    return "set-cookie", f'{COOKIE}="{secret}"; Path=/; HttpOnly; Secure; SameSite=Lax'


async def _answer(world: World, call: Call, request: Request) -> Response:
    pages = Pages(world, call)
    try:
        if request.asked("find") is not None:
            return _page(await pages.found(request.asked("find") or ""))
        mo = world.find(request.asked("moid") or "ServiceInstance", call)
        call.require("System.View", mo)
        return await _of_object(world, pages, mo, request)
    except vmodl.fault.ManagedObjectNotFound:
        return _page(pages.refused("Not found", "There is no such object; it may have been deleted."), 404)
    except vmodl.query.InvalidProperty as fault:
        return _page(pages.refused("Not found", fault.msg or ""), 404)
    except vim.fault.NoPermission as fault:
        return _page(pages.refused("No permission", fault.msg or ""), 403)


async def _of_object(world: World, pages: Pages, mo: Mo, request: Request) -> Response:
    method, path = request.asked("method"), request.asked("doPath")
    if method is not None:
        return await _of_method(world, pages, mo, method, request)
    if request.method == "POST":
        return _page(pages.refused("Nothing to do", "Only a method's page takes a form."), 400)
    return _page(await (pages.data(mo, path) if path else pages.object(mo)))


async def _of_method(world: World, pages: Pages, mo: Mo, method: str, request: Request) -> Response:
    info = find_method(mo.wire, method)
    if info is None:
        return _page(pages.refused("Not found", f"{wire_name(mo.wire)} has no method {method}."), 404)
    nonce = _nonce(pages.call)
    if request.method != "POST":
        return _page(pages.method(mo, info, nonce, {}, None))
    typed = dict(request.form)
    if not secrets.compare_digest(typed.get(NONCE, "").encode(), nonce.encode()):
        return _page(pages.refused("Forbidden", "The form is not of this session. Open the method's page again."), 403)
    doing = _invoke(world, pages.call, mo, info, typed)
    operation = mo.operations.get(info.wsdlName)
    outcome = await (unless_gone(request, doing) if operation is not None and operation.waits else doing)
    return _page(pages.method(mo, info, nonce, typed, outcome))


async def _invoke(world: World, call: Call, mo: Mo, info: Any, typed: dict[str, str]) -> Outcome:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return Outcome(await invoke(world, call, mo.moid, info.wsdlName, arguments(info, typed)))
    except TimeoutError:
        return Outcome(fault=vim.fault.Timedout(msg=f"It was still waiting after {PATIENCE_S:.0f} seconds."))
    except vmodl.MethodFault as fault:
        return Outcome(fault=fault)


def _nonce(call: Call) -> str:
    """The session's own, for as long as it lives."""
    state = call.session.state if call.session is not None else {}
    found: str = state.setdefault(_STATE, secrets.token_urlsafe(24))
    return found


async def _logout(world: World, request: Request) -> Response:
    sessions = world.part(Sessions)
    session = sessions.find(request.cookie(COOKIE))
    if session is not None:
        sessions.end(session)
    body = [tag("h1", "Logged out"), note("good", "Session ended", tag("p", _FORGET)), _home()]
    gone = ("set-cookie", f"{COOKIE}=; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=0")
    return replace(_page(frame("Logged out", body)), headers=(*_HEADERS, gone))


_FORGET = "A browser keeps the password that it was given: to make it forget, close it."


def _home() -> str:
    return tag("p", tag("a", "To the service instance", href="/mob/"))


def _who_are_you(sentence: str) -> Response:
    page = frame("Log in", [tag("h1", "Log in"), note("bad", "Not logged in", tag("p", sentence))])
    challenge = ("www-authenticate", 'Basic realm="Managed Object Browser", charset="UTF-8"')
    return replace(_page(page, 401), headers=(*_HEADERS, challenge))


def _page(body: bytes, status: int = 200) -> Response:
    return Response(status, body, "text/html; charset=utf-8", _HEADERS)
