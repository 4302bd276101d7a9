"""Routes into guests: commands, files, console, screen."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from ramet.api.edge import HostDep
from ramet.api.host_routes import LONGEST_WAIT_S
from ramet.errors import UsageError
from ramet.model.base import Model
from ramet.model.host import Task
from ramet.model.requests import Exec
from ramet.model.units import MIB
from ramet.model.views import ExecResult

router = APIRouter(prefix="/v1/vms/{ref}", tags=["guests"])

_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
_UPLOAD = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


class Address(Model):
    address: str


@router.post("/exec", operation_id="exec_in_vm", summary="Run a command in the guest")
async def exec_in_vm(ref: str, request: Exec, host: HostDep) -> ExecResult:
    """Needs a running VM whose guest agent answers. The answer comes when the command has ended or timed out."""
    return await host.exec_in_vm(ref, request)


@router.post("/agent/wait", status_code=204, operation_id="wait_agent", summary="Wait for the guest agent")
async def wait_agent(
    ref: str,
    host: HostDep,
    timeout_s: float = Query(60.0, gt=0, le=LONGEST_WAIT_S, description="An error after so long, seconds."),
) -> None:
    """Answers when the guest agent does: a guest that boots is asked anew now and then."""
    await host.wait_agent(ref, timeout_s)


@router.get(
    "/file", operation_id="read_file", summary="Read a file of the guest", response_class=Response, responses=_BYTES
)
async def read_file(ref: str, host: HostDep, path: str = Query(description="Absolute, in the guest.")) -> Response:
    """Needs a running VM whose guest agent answers. A connection that ends early means that reading failed half way."""
    chunks = host.read_file(ref, path)
    first = await anext(chunks, b"")  # an error that comes now is still an answer
    return StreamingResponse(_rest(first, chunks), media_type="application/octet-stream")


async def _rest(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(cast("Any", chunks)):
        yield first
        async for chunk in chunks:
            yield chunk


@router.put(
    "/file",
    status_code=204,
    operation_id="write_file",
    summary="Write a file of the guest",
    openapi_extra=_UPLOAD,
)
async def write_file(
    ref: str,
    request: Request,
    host: HostDep,
    path: str = Query(description="Absolute, in the guest."),
    mode: str = Query("0644", description="Its permission bits, octal."),
) -> None:
    """Needs a running VM whose guest agent answers. The body is the content; an existing file is replaced."""
    if not re.fullmatch(r"0?[0-7]{3,4}", mode):
        raise UsageError(f"{mode!r} is not a file mode.", hint="Write it like 0644.")
    await host.write_file(ref, path, _body(request), int(mode, 8))


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


@router.get(
    "/screenshot",
    operation_id="screenshot",
    summary="What the display shows, as PNG",
    response_class=Response,
    responses=_PNG,
)
async def screenshot(ref: str, host: HostDep) -> Response:
    """Needs a VM that is on and has a display."""
    return Response(await host.screenshot(ref), media_type="image/png")


@router.get(
    "/console",
    operation_id="console_log",
    summary="The end of what the console has shown",
    response_class=Response,
    responses=_BYTES,
)
async def console_log(ref: str, host: HostDep, max_bytes: int = Query(65536, ge=1, le=16 * MIB)) -> Response:
    """Also of a VM that is off. The live console is a stream, over the streams socket."""
    return Response(await host.console_log(ref, max_bytes), media_type="application/octet-stream")


@router.get("/address", operation_id="address_of", summary="The guest's IPv4 address")
async def address_of(ref: str, host: HostDep) -> Address:
    """As the port group's DHCP or the guest agent knows it."""
    return Address(address=await host.address_of(ref))


@router.post("/tools", status_code=202, operation_id="install_tools", summary="Install Ramet's tools in the guest")
async def install_tools(ref: str, host: HostDep) -> Task:
    """Needs a running VM whose guest agent answers. Installing again replaces them."""
    return await host.install_tools(ref)
