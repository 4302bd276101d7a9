"""GET of a VM's files and of its display's picture, as a raw ASGI app.

    app = make_app(world)

    /folder/vms/<id>/<file>?dcPath=ramet&dsName=ramet      what '[ramet] vms/<id>/<file>' names: logs and screenshots
    /screen?id=vm-17                                       the picture of now, as PNG

Whoever asks is known by the session's cookie, or by HTTP Basic; such a session ends with the answer, for a script
that asks each second would have hundreds. Disks are not read here: one that is written to meanwhile is no whole disk,
and `ramet vm disk export` makes one. Neither are CD images: those of cloud-init have passwords in them.

Source of the addresses: vSphere Web Services SDK Programming Guide, "HTTP Access to vSphere Server Files".
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from ramet.vsphere import ids
from ramet.vsphere.access.sessions import Sessions, UserSession
from ramet.vsphere.core.calls import CURRENT, Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.machine import screenshots
from ramet.vsphere.machine.refusals import refusing
from ramet.vsphere.types import vim, vmodl, wire_name
from ramet.vsphere.wire.exchange import COOKIE, App, Request, Response, asgi, unless_gone

__all__ = ["FOLDER", "SCREEN", "make_app"]

FOLDER, SCREEN = "/folder", "/screen"
READ_FILES, TAKE_PICTURES = "Datastore.FileManagement", "VirtualMachine.Interact.CreateScreenshot"
USE_CONSOLE = "VirtualMachine.Interact.ConsoleInteract"
TEXT, PNG = "text/plain; charset=utf-8", "image/png"
MAX_BYTES = 64 << 20
"""Logs are kept far shorter than that."""
BUSY_S = 1
"""After which somebody who was refused for too much work may ask again."""
_HEADERS = (("x-content-type-options", "nosniff"), ("cache-control", "no-store"))
_CHALLENGE = ("www-authenticate", 'Basic realm="VMware HTTP server", charset="UTF-8"')


def make_app(world: World) -> App:
    async def respond(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _say(405, "Files are only read here, with GET.", ("allow", "GET, HEAD"))
        sessions = world.part(Sessions)
        known = sessions.find(request.session_secret)
        if known is not None:
            return await _answer(world, known, request)
        try:
            session = await _log_in(sessions, request)
        except (vim.fault.InvalidLogin, vim.fault.NotAuthenticated) as fault:
            return _say(401, fault.msg or "Who are you?", _CHALLENGE)
        except vmodl.MethodFault as fault:  # too many sessions or logins: the password may be right
            return _say(503, fault.msg or wire_name(type(fault)), ("retry-after", str(BUSY_S)))
        try:
            return await _answer(world, session, request)
        finally:
            sessions.end(session)

    return asgi(respond, world)


async def _log_in(sessions: Sessions, request: Request) -> UserSession:
    if request.basic is None:
        raise vim.fault.NotAuthenticated(msg=f"Log in with HTTP Basic, or show the cookie {COOKIE} of a session.")
    agent = request.headers.get("user-agent", "")
    return await sessions.login(*request.basic, peer=request.peer, user_agent=agent)


async def _answer(world: World, session: UserSession, request: Request) -> Response:
    call = Call(session, peer=request.peer, user_agent=request.headers.get("user-agent", ""), host=request.host)
    token = CURRENT.set(call)
    sessions = world.part(Sessions)
    sessions.enter(session)  # it does not grow old meanwhile
    try:
        read = _picture if request.path.rstrip("/") == SCREEN else _file
        return await read(world, call, request)
    except vim.fault.NoPermission as fault:
        return _say(403, fault.msg or "You may not do that.")
    except (vmodl.fault.ManagedObjectNotFound, vim.fault.FileNotFound, vim.fault.NotFound) as fault:
        return _say(404, fault.msg or "There is no such file.")
    except vmodl.MethodFault as fault:
        return _say(409, fault.msg or wire_name(type(fault)))
    finally:
        sessions.leave(session)
        CURRENT.reset(token)


def _say(status: int, sentence: str, *headers: tuple[str, str]) -> Response:
    return Response(status, f"{sentence}\n".encode(), "text/plain; charset=utf-8", (*_HEADERS, *headers))


def _vm(world: World, call: Call, moid: str) -> tuple[Mo, str]:
    """ManagedObjectNotFound for what is no VM that is shown."""
    mo, vm_id = world.get(moid, call), ids.vm_id(moid)
    if mo is None or vm_id is None:
        raise vmodl.fault.ManagedObjectNotFound(msg=f"There is no VM {moid!r}.")
    return mo, vm_id


# -- pictures ----------------------------------------------------------------------------------------------------------


async def _picture(world: World, call: Call, request: Request) -> Response:
    mo, vm_id = _vm(world, call, request.asked("id") or "")
    call.require(TAKE_PICTURES, mo)
    with refusing(mo, "poweredOn"):
        picture = await unless_gone(request, screenshots.picture(world.host, vm_id))
    return Response(200, picture, PNG, _HEADERS)


# -- files -------------------------------------------------------------------------------------------------------------


async def _file(world: World, call: Call, request: Request) -> Response:
    store, center = request.asked("dsName"), (request.asked("dcPath") or ids.DATACENTER_NAME).strip("/")
    if store != ids.DATASTORE_NAME or center != ids.DATACENTER_NAME:
        wanted = f"dcPath={ids.DATACENTER_NAME}&dsName={ids.DATASTORE_NAME}"
        return _say(404, f"There is one datacenter and one datastore here: {wanted}.")
    match request.path.removeprefix(FOLDER).strip("/").split("/"):
        case ["vms", vm_id, name] if vm_id in world.host.floor.machines and not name.startswith("."):
            mo, vm_id = _vm(world, call, ids.vm_moid(vm_id))
        case _:
            return _say(404, "Files of VMs are read here; SearchDatastore_Task lists what there is.")
    call.require(READ_FILES, mo)
    plain = name.removesuffix(".1")  # what was written before, of a log that had become long
    if name.endswith(".png"):
        call.require(TAKE_PICTURES, mo)
    elif plain == "console.log":
        call.require(USE_CONSOLE, mo)
    elif not plain.endswith(".log"):
        return _say(403, "Logs and screenshots are read here. For a disk there is 'ramet vm disk export'.")
    kind = PNG if name.endswith(".png") else TEXT
    path = world.host.floor.rooms.paths.vm(vm_id) / name
    return Response(200, await asyncio.to_thread(_read, path), kind, _HEADERS)


def _read(path: Path) -> bytes:
    """No link, device or pipe, and nothing huge; FileNotFound says of all of them that there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
                return file.read(MAX_BYTES)
    except (OSError, ValueError):  # a name with a zero in it is none
        pass
    raise vim.fault.FileNotFound(file=path.name, msg=f"There is no file {path.name!r}.")
