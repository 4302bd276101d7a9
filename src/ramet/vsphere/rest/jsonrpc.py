"""JSON-RPC 2.0 as VMware's own SDKs speak it: POST /api, method `invoke`, with a service, an operation and its input.

    await answer(world, request) -> Response

Who calls stands in `ctx.securityCtx`: a session's id, or a name and a password for the one operation that opens one.
What goes wrong in an operation is its result, as an ERROR; what is no call at all is an error of JSON-RPC.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ramet.vsphere.core.world import World
from ramet.vsphere.rest.errors import ApiError, body
from ramet.vsphere.rest.operations import TABLE
from ramet.vsphere.rest.running import Credentials, run
from ramet.vsphere.rest.structs import Style, encode, plain
from ramet.vsphere.rest.table import Operation
from ramet.vsphere.wire.bounded_json import JsonError, parse_json
from ramet.vsphere.wire.exchange import Request, Response

__all__ = ["answer"]

_PARSE, _REQUEST, _METHOD, _PARAMETERS = -32700, -32600, -32601, -32602


class RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class _Asked:
    service: str
    operation: str
    given: dict[str, Any]
    credentials: Credentials


async def answer(world: World, request: Request) -> Response:
    id_: Any = None
    try:
        data = _parse(request.body)
        id_ = data.get("id")
        result = await _result(world, request, _asked(data, request))
        said: dict[str, Any] = {"jsonrpc": "2.0", "id": id_, "result": result}
    except RpcError as exc:
        said = {"jsonrpc": "2.0", "id": id_, "error": {"code": exc.code, "message": str(exc)}}
    return Response(200, json.dumps(said, ensure_ascii=False).encode("utf-8", "replace"), "application/json")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        data = parse_json(text)
    except JsonError as exc:
        raise RpcError(_PARSE, str(exc)) from exc
    if not isinstance(data, dict) or data.get("jsonrpc") != "2.0":
        raise RpcError(_REQUEST, "This is no request of JSON-RPC 2.0.")
    return data


def _asked(data: dict[str, Any], request: Request) -> _Asked:
    if data.get("method") != "invoke":
        raise RpcError(_METHOD, "The one method is 'invoke'.")
    params = data.get("params")
    if not isinstance(params, dict):
        raise RpcError(_PARAMETERS, "The parameters are missing.")
    service, operation = params.get("serviceId"), params.get("operationId")
    try:
        given = plain(params.get("input") or {"STRUCTURE": {"operation-input": {}}})
    except ValueError as exc:
        raise RpcError(_PARAMETERS, f"The input cannot be read: {exc}.") from exc
    if not isinstance(service, str) or not isinstance(operation, str) or not isinstance(given, dict):
        raise RpcError(_PARAMETERS, "A service, an operation and its input are needed.")
    return _Asked(service, operation, given, _credentials(params.get("ctx"), request))


def _credentials(context: Any, request: Request) -> Credentials:
    said = context.get("securityCtx") if isinstance(context, dict) else None
    said = said if isinstance(said, dict) else {}
    secret, name, password = said.get("sessionId"), said.get("userName"), said.get("password")
    basic = (name, password) if isinstance(name, str) and isinstance(password, str) else request.basic
    return Credentials(secret if isinstance(secret, str) else request.session_secret, basic)


async def _result(world: World, request: Request, asked: _Asked) -> dict[str, Any]:
    operation = TABLE.named(asked.service, asked.operation)
    try:
        if operation is None:
            raise ApiError("operation_not_found", f"There is no operation {asked.operation!r} in {asked.service!r}.")
        return {"output": await _run(world, request, operation, asked)}
    except ApiError as error:
        return {"error": body(error, Style.RPC)}


async def _run(world: World, request: Request, operation: Operation, asked: _Asked) -> Any:
    done = await run(world, request, operation, asked.given, asked.credentials)
    return encode(done.value, Style.RPC)
