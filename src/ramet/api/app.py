"""The native HTTP API as an application; `ramet.api.server` puts it on its socket.

app = make_app(host, closing)         # closing: set it when the daemon begins to stop
openapi() -> dict                     # the description, without a host
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI

from ramet import __version__
from ramet.api import (
    access_routes,
    device_routes,
    edge,
    follow_routes,
    guest_routes,
    host_routes,
    memory_routes,
    pool_routes,
    sharing_routes,
    stock_routes,
    vm_routes,
)
from ramet.api.contract import Host
from ramet.model.base import Model

_ABOUT = """\
Instant clones of running virtual machines. The API is served on a Unix socket, `run/api.sock` in the state folder, to
root, to the daemon's own user, and to members of the group `ramet`.

Long operations answer 202 with a `Task`: wait for it with `GET /v1/tasks/{id}?wait_s=30`. Errors answer
`{"error": {"code", "message", "hint", "fields"}}`: one sentence that says what is wrong, and one that says what to do.
Live consoles, displays and TCP connections into guests are passed as descriptors over `run/streams.sock`.
"""


_ROUTES = (
    vm_routes,
    pool_routes,
    device_routes,
    guest_routes,
    follow_routes,
    stock_routes,
    host_routes,
    memory_routes,
    sharing_routes,
    access_routes,
)



class ErrorBody(Model):
    code: str
    message: str
    hint: str | None = None
    fields: dict[str, Any]


class Problem(Model):
    """The answer to everything that did not work."""

    error: ErrorBody


class App(FastAPI):
    """FastAPI, but its description tells the errors that we really send."""

    def openapi(self) -> dict[str, Any]:
        description = super().openapi()
        for path in description["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # FastAPI's own shape, which we never send
        for unused in ("HTTPValidationError", "ValidationError"):
            description["components"]["schemas"].pop(unused, None)
        return description


def make_app(host: Host | None, closing: asyncio.Event | None = None) -> App:
    """`host` stays the caller's."""
    app = App(
        title="Ramet",
        version=__version__,
        description=_ABOUT,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}},
    )
    app.state.host = host
    app.state.closing = closing or asyncio.Event()
    edge.install(app)
    for module in _ROUTES:
        app.include_router(module.router)
    return app


def openapi() -> dict[str, Any]:
    """The API's description as a JSON object."""
    return make_app(None).openapi()
