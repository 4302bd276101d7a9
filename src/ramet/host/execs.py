"""Commands in guests that callers follow: each under a number, to which input and signals are addressed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator

from ramet.errors import NotFoundError, UsageError
from ramet.guest.agent import ExecOutcome
from ramet.guest.following import Following, Piece, follow
from ramet.host.floor import Floor
from ramet.model.execution import ExecEvent, FollowExec
from ramet.model.units import new_id


class ExecDesk:
    """Who follows a command ends it by closing the iterator; nothing of it is left in the guest then."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._running: dict[str, Following] = {}

    async def follow(self, ref: str, request: FollowExec) -> AsyncGenerator[ExecEvent, None]:
        """From `started` to `exited`. Errors are raised; DeadlineError when the command's time is over."""
        agent = self._floor.find(ref).agent
        given = _decoded(request.stdin_base64)
        with_input = request.stdin or bool(given)
        async with (
            follow(agent, request.argv, env=request.env, stdin=with_input) as command,
            command.feeding(given, end=not request.stdin),
        ):
            exec_id = new_id()
            self._running[exec_id] = command
            try:
                yield ExecEvent(kind="started", id=exec_id)
                async for piece in command.output(timeout_s=request.timeout_s):
                    yield piece_event(piece)
            finally:
                del self._running[exec_id]
            assert command.outcome is not None
            yield exited_event(command.outcome)

    async def write(self, exec_id: str, data: bytes, end: bool) -> None:
        """To the command's standard input; waits while the command does not read. `end`: nothing follows."""
        command = self._find(exec_id)
        await command.write(data)
        if end:
            await command.end_input()

    async def signal(self, exec_id: str, name: str) -> None:
        await self._find(exec_id).signal(name)

    def _find(self, exec_id: str) -> Following:
        command = self._running.get(exec_id)
        if command is None:
            raise NotFoundError(f"No command {exec_id!r} is followed.", hint="It may have ended.", ref=exec_id)
        return command


def piece_event(piece: Piece) -> ExecEvent:
    return ExecEvent(kind=piece.stream, data_base64=base64.b64encode(piece.data).decode())


def exited_event(outcome: ExecOutcome) -> ExecEvent:
    return ExecEvent(kind="exited", exit_code=exit_code_of(outcome), signal=outcome.signal)


def exit_code_of(outcome: ExecOutcome) -> int:
    """As shells tell it."""
    return outcome.exit_code if outcome.exit_code is not None else 128 + (outcome.signal or 0)


def _decoded(text: str | None) -> bytes:
    try:
        return base64.b64decode(text or "", validate=True)
    except (ValueError, binascii.Error) as exc:
        raise UsageError("stdin_base64 is not base64.") from exc
