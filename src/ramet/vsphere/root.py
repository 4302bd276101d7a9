"""The one application at the port: it hands a request to the protocol that its path belongs to.

    root = Root(apps, certificate)           # apps: [("/sdk", app), …], the longest that fits wins
    root.closing = True                      # what still runs when its task is cancelled answers 503

Besides it has a few pages of its own: `/` leads to the Managed Object Browser, `/health` says that it is there, and
`/ca.pem` is the authority's certificate, for those who want to trust it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import structlog

log = structlog.stdlib.get_logger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[..., Awaitable[None]]

MAX_BODY_BYTES = 4 << 20
STREAMS = ("/guestFile",)
"""Files of guests have no bound here."""


class Root:
    def __init__(self, apps: Sequence[tuple[str, App]], ca_file: Path | None = None) -> None:
        self._apps = sorted(apps, key=lambda pair: -len(pair[0]))
        self.ca_file = ca_file
        self.closing = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._carry(scope, receive, send)
        if scope["type"] != "http":
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._answer(scope, receive, noted)
        except asyncio.CancelledError:
            if not self.closing or started:
                raise
            await answer(send, 503, "The server is being closed.", close=True)
        except Exception:
            log.exception("a request failed by a bug of ours", method=scope["method"], path=scope["path"])
            if started:
                raise
            await answer(send, 500, "Something went wrong inside the server; its log has the details.", close=True)

    async def _carry(self, scope: Message, receive: Receive, send: Send) -> None:
        """The path is not told: a ticket stands in it."""
        app = None if self.closing else self._find(scope["path"])
        try:
            if app is None:
                await send({"type": "websocket.close"})
            else:
                await app(scope, receive, send)
        except OSError as exc:
            log.debug("a WebSocket ended early", error=str(exc))
        except Exception:
            log.exception("a WebSocket failed by a bug of ours")

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if self.closing:
            await answer(send, 503, "The server is being closed.", close=True)
        elif _declared_bytes(scope) > MAX_BODY_BYTES and not path.startswith(STREAMS):
            await answer(send, 413, "The request's body is larger than 4 MiB.", close=True)
        elif (app := self._find(path)) is not None:
            await app(scope, receive, send)
        else:
            await self._own(scope, send)

    def _find(self, path: str) -> App | None:
        for prefix, app in self._apps:
            if path == prefix or path.startswith(f"{prefix}/"):
                return app
        return None

    async def _own(self, scope: Message, send: Send) -> None:
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            await answer(send, 405 if path in ("/", "/health", "/ca.pem") else 404, "", close=True)
        elif path == "/":
            await answer(send, 302, "", headers=((b"location", b"/mob"),))
        elif path == "/health":
            await answer(send, 200, "ok\n")
        elif path == "/ca.pem" and self.ca_file is not None:
            text = await asyncio.to_thread(self.ca_file.read_text)
            await answer(send, 200, text, kind=b"application/x-pem-file")
        else:
            await answer(send, 404, "There is nothing here. Try /mob, /sdk or /api.\n")


async def answer(
    send: Send,
    status: int,
    text: str,
    *,
    kind: bytes = b"text/plain; charset=utf-8",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    close: bool = False,
) -> None:
    """A short text. `close`: the connection ends with it, as the rest of the request is not read."""
    body = text.encode()
    head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
    if close:
        head.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def _declared_bytes(scope: Message) -> int:
    """The parser has seen to it that it is a number."""
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(declared) if declared.isdigit() and len(declared) < 20 else 0
