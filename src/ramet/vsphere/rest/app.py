"""The automation API as a raw ASGI app: /api, its older twin /rest, and JSON-RPC at /api itself.

    app = make_app(world)

/api answers with the value itself, 204 for nothing; /rest with {"value": …}, 200 always, and takes {"spec": …}. In
/rest a filter is written filter.names.1=a&filter.names.2=b, in /api names=a&names=b; both are understood in both.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ramet.vsphere.core.world import World
from ramet.vsphere.rest import jsonrpc
from ramet.vsphere.rest.errors import ApiError, body
from ramet.vsphere.rest.operations import TABLE
from ramet.vsphere.rest.running import Credentials, Done, run
from ramet.vsphere.rest.structs import Struct, Style, encode
from ramet.vsphere.rest.table import Operation
from ramet.vsphere.wire.bounded_json import JsonError, parse_json
from ramet.vsphere.wire.exchange import SESSION_HEADER, App, Request, Response, asgi

__all__ = ["make_app"]

_ACTIONS = ("action", "~action")
_FILTERS = ("filter", "filter_spec")


def make_app(world: World) -> App:
    async def respond(request: Request) -> Response:
        if request.path.rstrip("/") == "/api" and request.method == "POST":
            return await jsonrpc.answer(world, request)
        prefix, _, rest = request.path.lstrip("/").partition("/")
        style = Style.REST if prefix == "rest" else Style.API
        try:
            return await _answer(world, request, style, f"/{rest}")
        except ApiError as error:
            return _refusal(error, style)

    return asgi(respond, world)


def _refusal(error: ApiError, style: Style) -> Response:
    headers = (("www-authenticate", 'Basic realm="VAPI endpoint"'),) if error.status == 401 else ()
    return Response(error.status, _text(body(error, style)), "application/json", headers)


async def _answer(world: World, request: Request, style: Style, path: str) -> Response:
    operation, in_path = _routed(request, style, path)
    given = {**_given(operation, request), **in_path}
    credentials = Credentials(request.session_secret or request.cookie(SESSION_HEADER), request.basic)
    done = await run(world, request, operation, given, credentials)
    return _success(done, operation, style)


def _routed(request: Request, style: Style, path: str) -> tuple[Operation, dict[str, str]]:
    action = next((found for name in _ACTIONS if (found := request.asked(name)) is not None), None)
    verb = "GET" if request.method == "HEAD" else request.method
    if verb == "POST" and action in ("get", "delete") and TABLE.routed(str(style), "POST", path, action) is None:
        verb, action = {"get": "GET", "delete": "DELETE"}[action], None  # how the older twin writes some verbs
    routed = TABLE.routed(str(style), verb, path, action)
    if routed is None:
        verbs = TABLE.verbs(str(style), path)
        hint = f" There: {', '.join(sorted(verbs))}." if verbs else ""
        raise ApiError("operation_not_found", f"There is no operation {request.method} {request.path}.{hint}")
    return routed


def _success(done: Done, operation: Operation, style: Style) -> Response:
    value = encode(done.value, style)
    headers: tuple[tuple[str, str], ...] = ()
    if done.opened is not None:
        cookie = f"{SESSION_HEADER}={done.opened.secret}; Path=/{style}; Secure; HttpOnly; SameSite=Lax"
        headers = ((SESSION_HEADER, done.opened.secret), ("set-cookie", cookie))
    if style is Style.REST:
        return Response(200, _text({} if value is None else {"value": value}), "application/json", headers)
    if value is None:
        return Response(204, headers=headers)
    return Response(201 if operation.created else 200, _text(value), "application/json", headers)


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


# -- what the request says ---------------------------------------------------------------------------------------------


def _given(operation: Operation, request: Request) -> dict[str, Any]:
    found = _in_query(operation, request.query)
    if request.method in ("POST", "PATCH", "PUT"):
        found |= _in_body(operation, request.body)
    return found


def _in_body(operation: Operation, text: bytes) -> dict[str, Any]:
    try:
        data = parse_json(text)
    except JsonError as exc:
        raise ApiError("invalid_argument", str(exc)) from exc
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ApiError("invalid_argument", "The body is an object.")
    if not operation.parameters.model_fields:
        return {}
    return {"spec": data} if operation.body_is_spec and set(data) != {"spec"} else data


def _in_query(operation: Operation, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    fields = operation.parameters.model_fields
    holder = next((name for name in _FILTERS if name in fields), None)
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in _ACTIONS:
            continue
        name = re.sub(r"\.\d+$", "", key)
        if name in fields:
            found[name] = value
        elif holder is not None:
            _filtered(found.setdefault(holder, {}), name.removeprefix(f"{holder}."), value, _spec(fields[holder]))
        else:
            raise ApiError("invalid_argument", f"There is no parameter {key!r} here.")
    return found


def _spec(field: Any) -> type[Struct] | None:
    """The structure of `filter: FilterSpec | None`."""
    kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Struct)), None)


def _filtered(into: dict[str, Any], name: str, value: str, spec: type[Struct] | None) -> None:
    field = spec.model_fields.get(name) if spec is not None else None
    if field is not None and "list" in str(field.annotation):
        into.setdefault(name, []).append(value)
    else:
        into[name] = value
