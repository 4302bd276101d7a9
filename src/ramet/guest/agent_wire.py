"""One connection to a qemu-guest-agent: lines of JSON, in step with the agent, every answer bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
from pathlib import Path
from typing import Any

from ramet.errors import GuestError

_SENTINEL = b"\xff"
_READ_BYTES = 256 * 1024
_THREAD_FROM_BYTES = 1 << 20
MAX_ANSWER_BYTES = 4 << 20
_MAX_NOISE_BYTES = 128 << 20
"""What may come before the answer to the synchronisation: the late answer of a command that was given up."""
OUT_OF_ORDER = "Is it the guest's own agent that answers there? 'ramet vm console' reaches the guest without it."
"""What to do about one that answers nonsense."""


def _closed() -> GuestError:
    return GuestError("The connection to the guest agent was closed.")


class AgentWire:
    """Make it with `open`, `synchronise` it once; `close` when done, and after anything raised, out of step then."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self.in_step = False
        """An agent has answered here."""

    @classmethod
    async def open(cls, path: Path) -> AgentWire:
        """Connect, and say nothing yet. Raises OSError when QEMU does not listen there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        wire = cls(sock)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except BaseException:
            wire.close()
            raise
        return wire

    def close(self) -> None:
        self._sock.close()

    @property
    def has_ended(self) -> bool:
        """Whether the other side has closed it: what is sent now would not arrive."""
        try:
            return not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def interrupt(self) -> None:
        """Let whoever waits on this connection see its end. It must still be closed."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    async def send(self, command: str, arguments: dict[str, Any]) -> None:
        request: dict[str, Any] = {"execute": command, **({"arguments": arguments} if arguments else {})}
        await self._send(json.dumps(request).encode() + b"\n")

    async def answer(self, max_bytes: int = MAX_ANSWER_BYTES) -> dict[str, Any]:
        """The next answer, an object with "return" or "error"."""
        return await _parsed(await self._until(b"\n", max_bytes))

    async def _send(self, data: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except OSError as exc:
            raise _closed() from exc

    async def synchronise(self) -> None:
        """Throw away what an earlier connection left, on both sides: the agent's parser restarts at 0xFF.

        Waits as long as the guest's agent is not up (set a deadline outside); `GuestError` for nonsense. A second call
        does nothing.
        """
        if self.in_step:
            return
        number = secrets.randbits(31)
        await self._send(_SENTINEL)
        await self.send("guest-sync-delimited", {"id": number})
        wanted = _SENTINEL + b'{"return": %d}\n' % number
        noise = 0
        while (at := self._buffer.find(wanted)) < 0:
            surplus = max(0, len(self._buffer) - len(wanted))  # the rest may be its beginning
            noise += surplus
            if noise >= _MAX_NOISE_BYTES:
                raise GuestError("The guest agent does not come into step.", hint=OUT_OF_ORDER)
            del self._buffer[:surplus]
            await self._fill()
        del self._buffer[: at + len(wanted)]
        self.in_step = True

    async def _until(self, end: bytes, max_bytes: int) -> bytes:
        searched = 0
        while (at := self._buffer.find(end, searched)) < 0:
            searched = len(self._buffer)
            if searched > max_bytes:
                raise GuestError(f"The guest agent's answer is larger than {max_bytes >> 20} MiB.", hint=OUT_OF_ORDER)
            await self._fill()
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        return line

    async def _fill(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = await asyncio.get_running_loop().sock_recv(self._sock, _READ_BYTES)
        if not data:
            raise _closed()
        self._buffer += data
        await asyncio.sleep(
            0
        )  # as long as there is something to read, reading it never waits, and nobody else would run


async def _parsed(line: bytes) -> dict[str, Any]:
    try:
        if len(line) > _THREAD_FROM_BYTES:
            answer = await asyncio.to_thread(json.loads, line)
        else:
            answer = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise GuestError("The guest agent's answer is not JSON.", hint=OUT_OF_ORDER) from exc
    if not isinstance(answer, dict) or ("return" in answer) == ("error" in answer):
        raise GuestError("The guest agent's answer is neither a result nor an error.", hint=OUT_OF_ORDER)
    return answer
