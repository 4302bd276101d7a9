"""A qemu-guest-agent behind a QEMU chardev socket, as far as `ramet.guest.agent` can tell."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class FakeRefusalError(Exception):
    """Raise from a command's function to answer with an error."""

    def __init__(self, error_class: str, description: str) -> None:
        super().__init__(description)
        self.answer = {"error": {"class": error_class, "desc": description}}


Command = Callable[[dict[str, Any]], Any]
"""From arguments to the "return". Bytes are sent as they are, None is no answer at all."""


class FakeAgent:
    """An async context manager that listens. Change `commands` to change what it does; `seen` lists what it was told.

    Files live in `files`; a program that is executed ends at once with what `run` says, or never if that is None.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands: dict[str, Command] = {
            "guest-ping": lambda arguments: {},
            "guest-exec": self._exec,
            "guest-exec-status": self._status,
            "guest-file-open": self._file_open,
            "guest-file-read": self._file_read,
            "guest-file-write": self._file_write,
            "guest-file-close": self._file_close,
        }
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.connections = 0
        self.files: dict[str, bytes] = {}
        self.run: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda arguments: {"exitcode": 0}
        self.greeting = b""
        """Sent before the answer to the synchronisation: left over from an earlier connection."""
        self.handles: dict[int, tuple[str, int]] = {}
        self._programs: dict[int, dict[str, Any]] = {}
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=1 << 20)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def hang_up(self) -> None:
        """Close every connection."""
        for writer in list(self._writers):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                answer = self._answer(json.loads(line.replace(b"\xff", b"")))
                if answer is not None:
                    writer.write(answer)
                    await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, request: dict[str, Any]) -> bytes | None:
        name, arguments = request["execute"], request.get("arguments", {})
        if name == "guest-sync-delimited":
            return self.greeting + b'\xff{"return": %d}\n' % arguments["id"]
        self.seen.append((name, arguments))
        try:
            if name not in self.commands:
                raise FakeRefusalError("CommandNotFound", f"The command {name} has not been found")
            result = self.commands[name](arguments)
        except FakeRefusalError as refusal:
            return json.dumps(refusal.answer).encode() + b"\n"
        if result is None or isinstance(result, bytes):
            return result
        return json.dumps({"return": result}).encode() + b"\n"

    def _exec(self, arguments: dict[str, Any]) -> Any:
        pid = len(self._programs) + 1
        outcome = self.run(arguments)
        self._programs[pid] = {"exited": False} if outcome is None else {"exited": True, **outcome}
        return {"pid": pid}

    def _status(self, arguments: dict[str, Any]) -> Any:
        if arguments["pid"] not in self._programs:
            raise FakeRefusalError("GenericError", "Invalid parameter 'pid'")
        return self._programs[arguments["pid"]]

    def _file_open(self, arguments: dict[str, Any]) -> Any:
        path = arguments["path"]
        if arguments["mode"] == "wb":
            self.files[path] = b""
        elif path not in self.files:
            raise FakeRefusalError("GenericError", f"failed to open file '{path}': No such file or directory")
        handle = 1000 + len(self.seen)
        self.handles[handle] = (path, 0)
        return handle

    def _file_read(self, arguments: dict[str, Any]) -> Any:
        path, at = self.handles[arguments["handle"]]
        chunk = self.files[path][at : at + arguments["count"]]
        self.handles[arguments["handle"]] = (path, at + len(chunk))
        eof = at + len(chunk) >= len(self.files[path])
        return {"count": len(chunk), "buf-b64": base64.b64encode(chunk).decode(), "eof": eof}

    def _file_write(self, arguments: dict[str, Any]) -> Any:
        path, _ = self.handles[arguments["handle"]]
        chunk = base64.b64decode(arguments["buf-b64"])
        self.files[path] += chunk
        return {"count": len(chunk), "eof": False}

    def _file_close(self, arguments: dict[str, Any]) -> Any:
        del self.handles[arguments["handle"]]
        return {}
