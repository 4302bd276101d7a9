"""Guests that misbehave, in every workflow that speaks with a guest.

The guest of the source, and with it those of its clones, stops answering, answers nonsense, or never ends
(``unruly.sh``). It is told to, and brought back to its senses, over its serial console, which needs neither its agent
nor guest RPC. Meanwhile somebody else works with the same daemon; afterwards the judge of all faults looks at what is
left.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ramet.clone import quiesce
from ramet.errors import DeadlineError, GuestError, RametError
from ramet.guest import agent as guest_agent
from ramet.model.machine import VmState
from ramet.model.requests import CloneVm, CreateVm, Exec, StopVm
from ramet.model.trying import TryCommand
from tests.guest.faults.stage import PATIENCE_S, SOURCE, Stage
from tests.guest.faults.workflows import bare

PROMPT_S = 10.0
"""What has nothing to do with the guest that misbehaves takes no longer, on a machine that does other things."""
MOST_GROWTH = 96 << 20
"""Of this process, which the daemon is a part of, in bytes."""
STEP = "misbehaves"
"""What stands in the table of what came of it, in the place of a step."""
_CONSOLE_S = 30.0
_SHORT_S = 3.0
_SCRIPT = Path(__file__).with_name("unruly.sh")


def _agent(how: str) -> str:
    """Init starts what stands in the agent's place."""
    program = f"echo $$ > /run/unruly-agent.pid; exec sh /run/unruly.sh {how}"
    return f"printf '#!/bin/sh\\n%s\\n' '{program}' > /etc/micro/agent; killall qemu-ga"


def _flood(how: str) -> str:
    return f"setsid sh /run/unruly.sh {how} </dev/null >/dev/null 2>&1 &"


BEHAVIOURS: dict[str, str] = {
    "agent silent": "killall -STOP qemu-ga",
    "agent answers nonsense": _agent("nonsense"),
    "agent never ends": _agent("babble"),
    "RPC: endless bytes": _flood("bytes"),
    "RPC: endless lines": _flood("lines"),
    "RPC: endless requests": _flood("requests"),
}
"""What is said on the guest's console to begin it."""


class Console:
    """The shell on a guest's serial console."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    async def run(self, script: str) -> None:
        """To its end."""
        token = secrets.token_hex(4)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONSOLE_S):
            await loop.sock_sendall(self._sock, f"\n{script}\necho en''d-{token}\n".encode())
            got = b""
            while f"end-{token}".encode() not in got:
                got = got[-100:] + await loop.sock_recv(self._sock, 4096)


@dataclass
class Play:
    """One case that is being played."""

    stage: Stage
    behaviour: str
    console: Console
    patch: pytest.MonkeyPatch

    @property
    def patience_s(self) -> float:
        """Nobody waits long for an agent that is out of order; a guest that floods is busy, and slow."""
        return _SHORT_S if self.behaviour.startswith("agent") else PATIENCE_S


Run = Callable[[Play], Awaitable[object]]


async def _clone(play: Play) -> None:
    await play.stage.done(await play.stage.host.clone_vm(SOURCE, bare("kid", freeze_hooks=False)))


async def _with_hooks(play: Play) -> None:
    request = bare("kid", freeze_hooks_timeout_s=play.patience_s)
    await play.stage.done(await play.stage.host.clone_vm(SOURCE, request))


async def _quiesced(play: Play) -> None:
    play.patch.setattr(quiesce, "FS_TIMEOUT_S", play.patience_s)
    await play.stage.done(await play.stage.host.clone_vm(SOURCE, bare("kid", freeze_hooks=False, quiesce=True)))


async def _identity(play: Play) -> None:
    request = CloneVm(names=("kid",), freeze_hooks=False, identity_timeout_s=play.patience_s, wait_network_s=0)
    result = await play.stage.done(await play.stage.host.clone_vm(SOURCE, request))
    assert isinstance(result, list)
    problem = result[0]["problem"]
    assert play.stage.live("kid").vm.identity.holds_links_down == bool(problem)
    if problem:
        message, _, hint = problem.partition(". ")
        raise GuestError(f"{message}.", hint=hint)


async def _try(play: Play) -> None:
    command = TryCommand(argv=("/bin/true",), timeout_s=PATIENCE_S)
    await play.stage.done(await play.stage.host.try_command(SOURCE, command))


async def _frozen_by_its_guest(play: Play) -> None:
    """And cloned, and thawed."""
    ask = "touch /run/freeze" if play.behaviour.startswith("RPC") else "vmware-rpctool instantclone.freeze &"
    await play.console.run(ask)
    await play.stage.until(lambda: play.stage.source.vm.state is VmState.FROZEN, "the guest has frozen itself")
    await play.stage.settle()
    await _clone(play)
    await play.stage.done(await play.stage.host.thaw_vm(SOURCE))


async def _exec(play: Play) -> None:
    await play.stage.host.exec_in_vm(SOURCE, Exec(argv=("/bin/true",), timeout_s=play.patience_s))


async def _stop(play: Play) -> None:
    """Of a clone. By the agent, else by the power button."""
    await _clone(play)
    await play.stage.done(await play.stage.host.stop_vm("kid", StopVm(timeout_s=PATIENCE_S / 2)))


WORKFLOWS: dict[str, Run] = {
    "clone with freeze hooks": _with_hooks,
    "clone with file systems frozen": _quiesced,
    "clone with an identity": _identity,
    "try": _try,
    "frozen by its guest, cloned, thawed": _frozen_by_its_guest,
    "exec": _exec,
    "clone, and stop the clone": _stop,
}


def cases() -> Iterator[tuple[str, str]]:
    """Workflow, behaviour."""
    for name in WORKFLOWS:
        for behaviour in BEHAVIOURS:
            yield name, behaviour


@dataclass
class Bystander:
    """Somebody who has nothing to do with the guest, and is not to notice it."""

    stage: Stage
    longest_s: float = field(default=0.0)

    async def work(self) -> None:
        """Until cancelled: ask, and make and remove a VM."""
        host = self.stage.host
        while True:
            began = time.monotonic()
            await host.list_vms()
            await self.stage.done(await host.create_vm(CreateVm(name="other", image="micro", memory_mib=96)))
            await self.stage.done(await host.remove_vm("other"))
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def _bystander(stage: Stage) -> AsyncIterator[None]:
    bystander = Bystander(stage)
    working = asyncio.ensure_future(bystander.work())
    try:
        yield
    finally:
        working.cancel()
        await asyncio.wait([working])
    assert working.cancelled(), working.exception()
    assert bystander.longest_s < PROMPT_S, bystander.longest_s


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def perform(stage: Stage, name: str, behaviour: str, patch: pytest.MonkeyPatch) -> str:
    """Play a case and judge it. What came of the workflow: 'done', or the code of its error."""
    before = _resident_bytes()
    try:
        async with asyncio.timeout(PATIENCE_S * 2), _misbehaving(stage, behaviour, patch) as play, _bystander(stage):
            outcome = await _outcome(WORKFLOWS[name](play))
        assert outcome == "done" or behaviour.startswith("agent"), outcome
        await stage.check()
        grown = _resident_bytes() - before
        assert grown < MOST_GROWTH, grown
        return outcome
    finally:
        await stage.reset()


@contextlib.asynccontextmanager
async def _misbehaving(stage: Stage, behaviour: str, patch: pytest.MonkeyPatch) -> AsyncIterator[Play]:
    """The source's guest does, until the end of the block; its clones are gone then."""
    await stage.guests.push(SOURCE, _SCRIPT, "/run/unruly.sh")
    await stage.sh(SOURCE, "[ -e /run/agent.own ] || cp /etc/micro/agent /run/agent.own")
    with await stage.host.open_stream("console", SOURCE, None) as sock, patch.context() as inner:
        console = Console(sock)
        inner.setattr(guest_agent, "_PATIENCE", 0.3)  # of ten seconds, where no request says how long
        await console.run(BEHAVIOURS[behaviour])
        try:
            yield Play(stage, behaviour, console, inner)
        finally:
            await stage.reset()
            await console.run("sh /run/unruly.sh well")
            await _answers(stage)


async def _answers(stage: Stage) -> None:
    """Until the agent does; what it said before comes first."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(GuestError, DeadlineError):
                return await stage.host.wait_agent(SOURCE, PATIENCE_S)


async def _outcome(work: Awaitable[object]) -> str:
    """'done', or the code of an error that says what is wrong, and what to do."""
    try:
        await work
    except RametError as exc:
        return _judged(exc)
    return "done"


def _judged(error: RametError) -> str:
    assert error.message.endswith((".", "!", ")", "'")), error.message
    assert error.hint, error.message
    assert error.code != "internal", error.message
    return error.code
