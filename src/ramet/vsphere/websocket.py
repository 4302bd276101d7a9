"""A WebSocket on one of the server's connections: uvicorn's, with bounds on what a stranger could hold without end.

A message has at most MOST_BYTES and MOST_FRAGMENTS pieces; there is no compression. While nothing is taken of what was
written, pings are not answered: nobody could read that either. Who answers no ping within PONG_S is cut, and with it
who reads nothing.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame

log = structlog.stdlib.get_logger(__name__)

MOST_BYTES = 1 << 20
MOST_FRAGMENTS = 1024
PING_S, PONG_S = 20.0, 60.0


class WebSocket(WebSocketsSansIOProtocol):
    """Handed its connection by the HTTP protocol, with the request that asked for it."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # Uvicorn tells whole paths at INFO, and so tickets; websockets at DEBUG each frame, and so what is typed.
        self.logger = self.conn.logger = logging.getLogger("uvicorn.websocket")
        self.logger.setLevel(logging.WARNING)
        self.conn.debug = False

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as exc:  # what the library means to be impossible
            log.debug("a WebSocket's client made no sense", error=repr(exc))
            self.transport.abort()

    def begin(self, head: bytes) -> None:
        """With a whole request, which the other parser did not mind: one that is none here ends the connection."""
        self.data_received(head)
        if not self.handshake_initiated:
            self.transport.abort()

    def handle_cont(self, event: Frame) -> None:
        if self.close_sent:
            return
        if len(self.frames) >= MOST_FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except InvalidState:  # the other side was first
            self.transport.close()
