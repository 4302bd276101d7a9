"""VI JSON as a raw ASGI app: POST /sdk/vim25/{release}/{Type}/{moid}/{method}, GET …/{property}.

    app = make_app(world)

Answers: 200 with the result, 204 for nothing, 500 with the fault that the method raised. What is addressed and is not
there is 404, a call without a session 401, a body that cannot be read 400; each of them with the fault as well. A login
returns the session's secret in the header vmware-api-session-id.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke, offered, reached
from ramet.vsphere.core.properties import check_path
from ramet.vsphere.core.world import World
from ramet.vsphere.types import NEWEST, Support, is_a, property_info, vim, vmodl
from ramet.vsphere.vijson.codec import fault_to_json, from_json, to_json
from ramet.vsphere.wire import leaves
from ramet.vsphere.wire.bounded_json import JsonError, parse_json
from ramet.vsphere.wire.exchange import SESSION_HEADER, App, Request, Response, asgi, unless_gone

__all__ = ["make_app"]

PREFIX = "/sdk/vim25/"
_FIRST = "vim.version.v8_0_1_0"
_OF_THE_BODY = ("_this", "_typeName")


@dataclass(frozen=True, slots=True)
class _Address:
    version: str
    kind: str
    moid: str
    name: str


class _RefusedError(Exception):
    """An answer before, or instead of, a method's own."""

    def __init__(self, status: int, fault: Any) -> None:
        self.status, self.fault = status, fault


def make_app(world: World) -> App:
    async def respond(request: Request) -> Response:
        version = NEWEST
        try:
            address = _address(request.path)
            version = address.version
            return await _answer(world, request, address)
        except _RefusedError as refused:
            return _json(refused.status, fault_to_json(refused.fault, version))
        except vmodl.MethodFault as fault:
            status = 401 if isinstance(fault, vim.fault.NotAuthenticated) else 500
            return _json(status, fault_to_json(fault, version))

    return asgi(respond, world)


def _address(path: str) -> _Address:
    parts = path.removeprefix(PREFIX).split("/")
    if not path.startswith(PREFIX) or len(parts) != 4 or not all(parts):
        raise _not_here("The path is /sdk/vim25/{release}/{type}/{id}/{method or property}.")
    version = Support.versionMap.get(f"vim25/{parts[0]}")
    if version is None or not Support.IsChildVersion(NEWEST, version) or not Support.IsChildVersion(version, _FIRST):
        raise _not_here(f"There is no release {parts[0]!r} here; there are 8.0.1.0 to 8.0.3.0.")
    return _Address(str(version), *parts[1:])


def _not_here(sentence: str) -> _RefusedError:
    return _RefusedError(404, vmodl.fault.InvalidRequest(msg=sentence))


async def _answer(world: World, request: Request, address: _Address) -> Response:
    session = world.part(Sessions).find(request.session_secret)
    call = Call(session, address.version, request.peer, request.headers.get("user-agent", ""), request.host)
    _check_object(world, call, address)
    if request.method == "GET":
        return await _get(world, call, address)
    if request.method == "POST":
        return await _post(world, call, address, request)
    sentence = "A property is read with GET, a method is called with POST."
    raise _RefusedError(405, vmodl.fault.InvalidRequest(msg=sentence))


def _check_object(world: World, call: Call, address: _Address) -> None:
    kind = leaves.named_type(address.kind)
    is_kind = kind is not None and leaves.is_reference(kind)
    reference = (kind if is_kind else Support.ManagedObject)(address.moid)
    try:
        mo = reached(world, call, address.moid, reference)
    except vmodl.fault.ManagedObjectNotFound as fault:
        raise _RefusedError(404, fault) from fault
    if not is_kind or not is_a(mo.wire, kind):
        raise _not_here(f"{address.moid} is no {address.kind}.")


async def _get(world: World, call: Call, address: _Address) -> Response:
    mo = world.find(address.moid, call)
    try:
        check_path(mo.wire, address.name)
    except vmodl.query.InvalidProperty as fault:
        raise _RefusedError(404, fault) from fault
    info = property_info(mo.wire, address.name)
    value = await invoke(world, call, address.moid, "Fetch", {"prop": address.name})
    return _result(value, object if info is None else info.type, address.version)


async def _post(world: World, call: Call, address: _Address, request: Request) -> Response:
    try:
        offer = offered(world.find(address.moid, call), address.name)
    except vmodl.fault.MethodNotFound as fault:
        raise _RefusedError(404, fault) from fault
    doing = invoke(world, call, address.moid, address.name, _arguments(offer.info, request.body))
    waits = offer.operation is not None and offer.operation.waits
    result = await (unless_gone(request, doing) if waits else doing)
    answer = _result(result, offer.info.result or object, address.version)
    opened = call.reply.session
    return answer if opened is None else replace(answer, headers=((SESSION_HEADER, opened.secret),))


def _arguments(info: Any, body: bytes) -> dict[str, Any]:
    try:
        data = parse_json(body)
    except JsonError as exc:
        raise _RefusedError(400, vmodl.fault.InvalidRequest(msg=str(exc))) from exc
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise _RefusedError(400, vmodl.fault.InvalidRequest(msg="The body is an object with the parameters in it."))
    known = {parameter.name: parameter for parameter in info.params}
    given = {name: value for name, value in data.items() if name not in _OF_THE_BODY and value is not None}
    strange = next((name for name in given if name not in known), None)
    try:
        if strange is not None:
            raise leaves.wrong(strange, f"{info.wsdlName} has no such parameter.")
        return {name: from_json(value, known[name].type, name) for name, value in given.items()}
    except vmodl.fault.InvalidArgument as fault:
        raise _RefusedError(400, fault) from fault


def _result(value: Any, declared: Any, version: str) -> Response:
    if value is None:
        return Response(204)
    return _json(200, to_json(value, declared, version))


def _json(status: int, data: Any) -> Response:
    return Response(status, json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"), "application/json")
