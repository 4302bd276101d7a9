"""One VM's guest RPC socket: reads requests, has them carried out, sends the answers, and holds still for a stun."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

from ramet.guest.rpc import GuestRpc, Request

Handler = Callable[[bytes], Awaitable[tuple[bool, bytes]]]
"""Carries out one request: (done, value) or (refused, reason). See `ramet.guest.commands.answer`."""

_READ_BYTES = 16 * 1024
"""At a time: lines that make no sense cost microseconds each, and nobody else is served meanwhile."""
_BURST = 200
_PER_S = 400.0
"""Lines, whatever stands in them, or pieces of `_PIECE_BYTES` without one."""
_PIECE_BYTES = 16 * 1024
_MOST_DEBT = 2000.0
"""What a guest said in its stun is taken in at once, however much: it is heard again within seconds all the same."""
_POLL_S = 0.0005

_log = logging.getLogger(__name__)


class RpcChannel:
    """Make it with `open`. It owns its socket and its tasks; `close` ends both.

    Every request is handled in a task of its own: a freeze may wait for minutes, others must not. The guest's
    demands are bounded by the codec, and here by a rate: a guest that says more, sense or not, is read slower.
    """

    def __init__(self, sock: socket.socket, handler: Handler, inherited: Handler) -> None:
        self._sock = sock
        self._handler = handler
        self._inherited = inherited
        self._rpc = GuestRpc()
        self._going = asyncio.Event()
        self._going.set()
        self._sending = asyncio.Lock()
        self._unsent = 0
        self._waiting: list[Request] = []
        self._held: list[Request] = []
        """Inherited requests of a VM that does not run yet."""
        self._ahead = 0
        """Bytes that were taken in and still lie in the socket."""
        self._calls: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._tokens = float(_BURST)
        self._refilled_at = 0.0

    @classmethod
    async def open(
        cls,
        path: Path,
        handler: Handler,
        *,
        timeout_s: float,
        pending: bytes = b"",
        inherited: Handler | None = None,
        held: bool = False,
    ) -> RpcChannel:
        """Connect to QEMU's chardev socket; raises OSError, or TimeoutError after `timeout_s`.

        `pending` is what `pending()` gave for the VM or moment this VM was made from; those requests go to
        `inherited` (else to `handler`) at once, or when `held`, with the first `resume`: what is right to answer may
        be known only when the VM begins to run.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, str(path)), timeout_s)
        except BaseException:
            sock.close()
            raise
        channel = cls(sock, handler, inherited or handler)
        channel._start(pending, held)
        return channel

    def _start(self, pending: bytes, held: bool) -> None:
        self._refilled_at = asyncio.get_running_loop().time()
        self._held = list(self._rpc.receive(pending))
        if held:
            self._going.clear()
        else:
            self._call_held()
        self._reader = asyncio.create_task(self._read(), name="guest-rpc")

    async def wait_closed(self) -> None:
        """Until QEMU closes the socket: the VM is gone."""
        if self._reader is not None:
            await asyncio.shield(self._reader)

    async def close(self) -> None:
        """End the channel; unfinished requests are cancelled, unanswered. Any number of times."""
        tasks = [task for task in (self._reader, *self._calls) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()

    # The stun

    async def quiesce(self, timeout_s: float = 0.05) -> None:
        """Before the VM is stopped: send no more answers, read nothing, and wait until those sent have reached it.

        Requests that come or finish from now on stay unanswered until `resume`. When the guest does not read
        within the bound, nothing is lost: `pending` has those requests too, and their second answer is skipped.
        """
        self._going.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._settle():  # noqa: ASYNC110 (the kernel tells nobody when a socket's queue has become empty)
                    await asyncio.sleep(_POLL_S)

    def drain(self) -> None:
        """After the VM was stopped: take in what it had sent before. Does not block.

        It stays in the socket, for a QEMU that finds room there goes on with what its guest has queued: that would
        change the guest's memory after its devices were saved, and no QEMU takes such a pair (7.2: "VQ 7 size …").
        """
        size: int = struct.unpack("i", fcntl.ioctl(self._sock, termios.FIONREAD, bytes(4)))[0]
        with contextlib.suppress(OSError):  # QEMU is gone; the reader sees it too
            data = self._sock.recv(size, socket.MSG_PEEK)[self._ahead :] if size else b""
            self._ahead += len(data)
            self._take(data)
        self._settle()

    def pending(self) -> bytes:
        """What a clone made now has to be given: see `open`."""
        return self._rpc.unanswered

    def resume(self) -> None:
        """After the stun, or instead of it: answer again."""
        self._going.set()
        self._call_held()
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            self._call(request, self._handler)
        self._own(self._flush(), "guest-rpc flush")

    def _call_held(self) -> None:
        held, self._held = self._held, []
        for request in held:
            self._call(request, self._inherited)

    def _settle(self) -> bool:
        """Whether QEMU has read all that was sent; it reads no more than fits into the guest's own buffers."""
        if self._rpc.is_delivered:
            return True
        if self._unsent:
            return False
        unread: int = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)))[0]
        if unread == 0:
            self._rpc.delivered()
        return unread == 0

    # Work

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            await self._flush()
            while data := await self._next():
                known = min(self._ahead, len(data))
                self._ahead -= known
                self._take(data[known:])
                if self._going.is_set():
                    self._settle()
                    await self._flush()
                await self._slow_down()

    async def _next(self) -> bytes:
        """What comes next, while the VM is not to stand still; nothing at the end."""
        while True:
            await self._going.wait()
            with contextlib.suppress(BlockingIOError):
                return self._sock.recv(_READ_BYTES)
            await self._readable()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._sock, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._sock)

    def _take(self, data: bytes) -> None:
        cost = data.count(b"\n") + len(data) / _PIECE_BYTES
        self._tokens = max(self._tokens - cost, -_MOST_DEBT)
        for request in self._rpc.receive(data):
            if self._going.is_set():
                self._call(request, self._handler)
            else:
                self._waiting.append(request)

    async def _slow_down(self) -> None:
        now = asyncio.get_running_loop().time()
        self._tokens = min(_BURST, self._tokens + (now - self._refilled_at) * _PER_S)
        self._refilled_at = now
        # Also without a debt: as long as there is something to read, reading it never waits, and nobody else would run.
        await asyncio.sleep(max(0.0, -self._tokens / _PER_S))

    def _call(self, request: Request, handler: Handler) -> None:
        self._own(self._carry_out(request, handler), f"guest-rpc {request.id}")

    def _own(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _carry_out(self, request: Request, handler: Handler) -> None:
        try:
            ok, value = await handler(request.text)
        except Exception:
            _log.exception("guest RPC request failed")
            ok, value = False, b"Internal error"
        await self._going.wait()
        await self._send(self._rpc.reply(request.id, ok, value))

    async def _flush(self) -> None:
        await self._send(self._rpc.data_to_send())

    async def _send(self, data: bytes) -> None:
        # A guest that does not read holds this up; what can wait behind it is bounded by the codec.
        self._unsent += 1
        try:
            async with self._sending:
                await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except OSError:
            pass  # QEMU is gone; the reader sees it too
        finally:
            self._unsent -= 1
