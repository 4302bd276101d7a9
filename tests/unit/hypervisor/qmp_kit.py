"""A QMP server that answers from a table, over a real socket."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

Answer = Callable[[dict[str, Any]], Any]

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}


class RefuseError(Exception):
    """Raised by an answer: the command is refused with these words."""


class FakeMonitor:
    """One connection at a time. `answers` maps a command to a value or a function of its arguments."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"qmp_capabilities": {}, **answers}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.received: list[bytes] = []
        """What the descriptors read that came along, in order."""
        self._connection: socket.socket | None = None

    @contextlib.asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
            task = asyncio.create_task(self._accept(listener))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self.drop()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._connection, _ = await loop.sock_accept(listener)
            self._connection.setblocking(False)
            self.send(GREETING)
            with contextlib.suppress(ConnectionError, OSError):
                await self._talk(self._connection)

    async def _talk(self, connection: socket.socket) -> None:
        buffer = b""
        while data := await self._receive(connection):
            buffer += data
            while buffer.strip():
                try:
                    message, end = json.JSONDecoder().raw_decode(buffer.decode().lstrip())
                except ValueError:
                    break
                buffer = buffer.decode().lstrip()[end:].encode()
                self._answer(message)

    async def _receive(self, connection: socket.socket) -> bytes:
        while True:
            with contextlib.suppress(BlockingIOError):
                data, rights, _, _ = connection.recvmsg(65536, 1024)
                for _, _, content in rights:
                    self._keep(content)
                return data
            ready = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(connection, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(connection)

    def _keep(self, content: bytes) -> None:
        fds = array.array("i")
        fds.frombytes(content)
        for fd in fds:
            self.received.append(os.pread(fd, 100, 0))
            os.close(fd)

    def _answer(self, message: dict[str, Any]) -> None:
        command, arguments = message["execute"], message.get("arguments", {})
        self.asked.append((command, arguments))
        answer = self.answers.get(command, RefuseError(f"The command {command} has not been found"))
        try:
            if callable(answer):
                answer = answer(arguments)
            if isinstance(answer, RefuseError):
                raise answer
        except RefuseError as exc:
            self.send({"error": {"class": "GenericError", "desc": str(exc)}, "id": message.get("id")})
            return
        if answer is not None:
            self.send({"return": answer, "id": message.get("id")})

    def send(self, message: dict[str, Any]) -> None:
        assert self._connection is not None
        self._connection.send(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}})

    def drop(self) -> None:
        """End the connection, as a QEMU does that dies."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()
            self._connection = None

    @property
    def commands(self) -> list[str]:
        return [command for command, _ in self.asked if command != "qmp_capabilities"]
