"""The helper process and the daemon's side of it, against fake sources: who dies when, and what is made up for."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import InternalError, PeerError, QemuError, RametError, StateError, TaskCancelledError
from ramet.hypervisor.stun_client import StunHelper, release
from ramet.hypervisor.stun_link import HelperLostError, spawn
from ramet.hypervisor.stun_plan import StunPlan, StunResult
from ramet.hypervisor.stun_wire import FrameDecoder, Message, receive, send
from tests.unit.hypervisor.stun_kit import WAIT_S, RefuseError, Source, failing, once, wait_until

COMMANDS = ["stop", "transaction", "migrate", "cont"]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with Source(tmp_path) as source:
        yield source


@pytest.fixture
async def helper(tmp_path: Path) -> AsyncIterator[StunHelper]:
    helper = StunHelper(log_path=tmp_path / "helper.log")
    await helper.start()
    yield helper
    await helper.close()
    assert helper.pid is None
    assert "Traceback" not in (tmp_path / "helper.log").read_text()


def nothing() -> None:
    """For sources without guest RPC."""


def close_children(result: StunResult) -> None:
    for fork in result.forks:
        os.close(fork.pidfd)


async def failure(work: Any, kind: type[RametError]) -> RametError:
    with pytest.raises(kind) as caught:
        await work
    return caught.value


async def test_a_stun_through_the_helper(source: Source, helper: StunHelper) -> None:
    stopped: list[str] = []
    result = await helper.stun(source.plan(), lambda: stopped.append(source.qemu.status))
    assert stopped
    assert source.qemu.status == "running"
    assert [step.overlay for step in result.snapshotted] == ["overlay"]
    assert [fork.pid for fork in result.forks] == source.library.alive()
    assert result.forks[0].fork_ms == 1.5
    assert result.state_bytes == 5
    assert (result.status_before, result.held) == ("running", False)
    assert set(result.timings_ms()) == {f"{s}_ms" for s in ("stop", "snapshot", "state", "fork", "resume", "total")}
    signal.pidfd_send_signal(result.forks[0].pidfd, signal.SIGKILL)
    source.library.assert_no_child()
    close_children(result)


async def test_the_daemon_hears_of_the_stop_while_the_source_is_stopped(source: Source, helper: StunHelper) -> None:
    """The fork waits until the daemon has been told, so the order is seen and not only likely."""
    told = threading.Event()
    source.library.hooks["fork"] = lambda: (told.wait(WAIT_S), None)[1]
    result = await helper.stun(source.plan(), told.set)
    assert told.is_set()
    close_children(result)


async def test_a_callback_that_fails_does_not_hurt_the_stun(source: Source, helper: StunHelper) -> None:
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    def fail() -> None:
        raise ValueError("drain")

    close_children(await helper.stun(source.plan(), fail))
    assert isinstance(seen[0]["exception"], ValueError)


async def test_errors_arrive_with_their_class_and_fields(source: Source, helper: StunHelper) -> None:
    source.qemu.hooks["migrate"] = failing(RefuseError)
    error = await failure(helper.stun(source.plan(), nothing), QemuError)
    assert error.message == "QEMU refused: said the test."
    assert error.fields["step"] == "state"
    assert error.fields["restored"] is True
    assert error.fields["snapshotted"] == [["base", "overlay"]]
    source.qemu.status = "shutdown"
    assert (await failure(helper.stun(source.plan(), nothing), StateError)).fields["state"] == "shutdown"


async def test_children_of_a_failed_stun_are_ended_and_reaped(source: Source, helper: StunHelper) -> None:
    source.qemu.hooks["cont"] = failing(RefuseError)
    await failure(helper.stun(source.plan(forks=(source.request(), source.request())), nothing), QemuError)
    # They are this process's children, so the client has reaped them: their pids mean nothing any more.
    assert len(source.library.children) == 2
    for child in source.library.children:
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)


async def test_stuns_of_two_sources_overlap(tmp_path: Path, helper: StunHelper) -> None:
    barrier = threading.Barrier(2, timeout=WAIT_S)
    with Source(tmp_path, "a") as one, Source(tmp_path, "b") as other:
        for source in (one, other):
            source.qemu.hooks["migrate"] = lambda: (barrier.wait(), None)[1]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(helper.stun(source.plan(), nothing)) for source in (one, other)]
        for task in tasks:
            close_children(task.result())


async def test_a_plan_larger_than_a_packet_arrives(source: Source, helper: StunHelper) -> None:
    """More descriptors than one message may carry, and more bytes than a socket buffer holds."""
    requests = [source.request(f"c{i}", fds=30, env={"X": "y" * 60_000}) for i in range(12)]
    result = await helper.stun(source.plan(forks=tuple(requests)), nothing)
    assert [count for _, count in source.library.requests] == [30] * 12
    assert all(b"y" * 60_000 in packet for packet, _ in source.library.requests)
    close_children(result)


async def test_a_plan_too_large_is_refused_before_anything(source: Source, helper: StunHelper) -> None:
    plan = source.plan(forks=(source.request(env={"X": "y" * (9 << 20)}),))
    await failure(helper.stun(plan, nothing), PeerError)
    assert source.qemu.commands == []
    close_children(await helper.stun(source.plan(), nothing))


@pytest.mark.parametrize("command", [*COMMANDS, "fork"])
async def test_the_helper_killed_in_a_stun_is_made_up_for(source: Source, helper: StunHelper, command: str) -> None:
    def kill() -> None:
        assert helper.pid is not None
        os.kill(helper.pid, signal.SIGKILL)

    hooks = source.library.hooks if command == "fork" else source.qemu.hooks
    hooks[command] = once(kill)
    error = await failure(helper.stun(source.plan(), nothing), HelperLostError)
    assert (error.fields["restored"], error.fields["reason"], source.qemu.status) == (True, "helper-lost", "running")
    assert error.fields["snapshotted"] == [list(pair)[::-1] for pair in source.qemu.backing]
    if command == "cont":
        # Before that, the library may not yet have handed the child over: it is the library then that ends it.
        source.library.assert_no_child()
    close_children(await helper.stun(source.plan(), nothing))


async def test_a_helper_that_hangs_is_ended_and_made_up_for(
    source: Source, helper: StunHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze() -> None:
        assert helper.pid is not None
        os.kill(helper.pid, signal.SIGSTOP)

    source.qemu.hooks["migrate"] = once(freeze)
    monkeypatch.setattr(StunPlan, "longest_s", property(lambda self: 0.2))
    monkeypatch.setattr("ramet.hypervisor.stun_client._SLACK_S", 0.1)
    error = await failure(helper.stun(source.plan(), nothing), HelperLostError)
    assert (error.fields["restored"], source.qemu.status) == (True, "running")
    monkeypatch.undo()
    close_children(await helper.stun(source.plan(), nothing))


async def test_a_source_that_was_not_stopped_yet_is_not_touched_for_a_dead_helper(
    source: Source, helper: StunHelper
) -> None:
    def kill() -> None:
        assert helper.pid is not None
        source.qemu.status = "paused"  # by somebody else
        os.kill(helper.pid, signal.SIGKILL)

    source.qemu.hooks["getfd"] = once(kill)
    error = await failure(helper.stun(source.plan(), nothing), HelperLostError)
    assert (error.fields["restored"], source.qemu.status) == (True, "paused")


@pytest.mark.parametrize("command", COMMANDS)
async def test_closing_restores_first(source: Source, tmp_path: Path, command: str) -> None:
    helper = StunHelper(log_path=tmp_path / "helper.log")
    await helper.start()
    loop, closing = asyncio.get_running_loop(), []
    asked = threading.Event()

    def close() -> None:
        loop.call_soon_threadsafe(lambda: closing.append(loop.create_task(helper.close())))
        assert helper.pid is not None
        pid = helper.pid
        # The signal is there once the helper has let go of one of its waits: its way back begins with this question.
        loop.call_soon_threadsafe(asked.set)
        assert asked.wait(WAIT_S)
        wait_until(lambda: _is_told(pid), "the helper is told to stop")

    source.qemu.hooks[command] = once(close)
    error = await failure(helper.stun(source.plan(), nothing), TaskCancelledError)
    await asyncio.gather(*closing)
    assert (error.fields["restored"], source.qemu.status) == (True, "running")
    source.library.assert_no_child()
    assert (await failure(helper.stun(source.plan(), nothing), InternalError)).message == "The stun helper is closed."


def _is_told(pid: int) -> bool:
    """The main thread has left its loop and waits for the others to end."""
    return "futex" in Path(f"/proc/{pid}/wchan").read_text() or Path(f"/proc/{pid}/syscall").read_text().startswith(
        "202 "
    )


@pytest.mark.parametrize("command", COMMANDS)
async def test_cancelling_waits_for_the_end_and_takes_back(source: Source, helper: StunHelper, command: str) -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    go_on = threading.Event()

    def cancel() -> None:
        loop.call_soon_threadsafe(started.set)
        assert go_on.wait(WAIT_S)

    source.qemu.hooks[command] = once(cancel)
    task = asyncio.ensure_future(helper.stun(source.plan(hold=command != "cont"), nothing))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # impatience changes nothing
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.qemu.status == "running"
    for child in source.library.children:
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)


async def test_release_lets_a_held_source_go_on(source: Source, helper: StunHelper) -> None:
    result = await helper.stun(source.plan(hold=True, forks=()), nothing)
    assert (result.held, source.qemu.status) == (True, "postmigrate")
    await release(source.qemu.path, timeout_s=5.0)
    assert source.qemu.status == "running"
    await release(source.qemu.path, timeout_s=5.0)
    assert source.qemu.status == "running"


async def test_release_tells_when_the_source_does_not_run(source: Source) -> None:
    source.qemu.status = "guest-panicked"
    assert (await failure(release(source.qemu.path, timeout_s=5.0), QemuError)).fields["status"] == "guest-panicked"
    source.qemu.status = "postmigrate"
    source.qemu.hooks["cont"] = failing(RefuseError)
    assert "said the test" in (await failure(release(source.qemu.path, timeout_s=5.0), QemuError)).message


class Daemon:
    """The daemon's end of a helper, by hand, to be cut off at any moment."""

    def __init__(self, log: Path) -> None:
        self.process, self.socket, self._records = spawn(log)

    def die(self) -> None:
        """As the kernel does it: every descriptor is closed, in any order."""
        self.socket.close()
        self._records.close()

    def submit(self, plan: StunPlan) -> None:
        message, fds = plan.to_wire()
        send(self.socket, {"id": 1, "what": "stun", "plan": message}, fds, timeout_s=WAIT_S)


CUTS = [
    (command, hold) for command in (*COMMANDS, "fork") for hold in (False, True) if not (hold and command == "cont")
]


@pytest.mark.parametrize(("command", "hold"), CUTS)
def test_a_dead_daemon_leaves_no_source_stopped(source: Source, tmp_path: Path, command: str, hold: bool) -> None:
    daemon = Daemon(tmp_path / "helper.log")
    hooks = source.library.hooks if command == "fork" else source.qemu.hooks
    hooks[command] = once(daemon.die)
    try:
        daemon.submit(source.plan(hold=hold))
        assert daemon.process.wait(WAIT_S) == 0
    finally:
        daemon.process.kill()
        daemon.process.wait()
        daemon.die()
    assert source.qemu.status == "running"
    source.library.assert_no_child()


def test_a_dead_daemon_ends_a_stun_that_would_wait_longer(source: Source, tmp_path: Path) -> None:
    source.qemu.migration_ends = "active"
    daemon = Daemon(tmp_path / "helper.log")
    try:
        daemon.submit(source.plan(bound_ms=600_000.0))
        wait_until(lambda: source.qemu.migration == "active", "the migration has begun")
        daemon.die()
        assert daemon.process.wait(WAIT_S) == 0
    finally:
        daemon.process.kill()
        daemon.process.wait()
        daemon.die()
    assert source.qemu.status == "running"


def test_nonsense_from_the_daemon_does_not_end_in_a_stopped_source(source: Source, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "helper.log")
    decoder = FrameDecoder()
    messages: list[Message] = []
    try:
        send(daemon.socket, {"id": 7, "what": "stun", "plan": {"qmp_path": 3}}, [], timeout_s=WAIT_S)
        while len(messages) < 2:
            messages += [message for message, _ in receive(daemon.socket, decoder) or []]
        assert messages[1]["error"]["message"] == "A plan for a stun is not understood."
        daemon.socket.send(b"\xff" * 64)
        assert daemon.process.wait(WAIT_S) != 0
    finally:
        daemon.process.kill()
        daemon.process.wait()
        daemon.die()


async def test_the_helper_is_small(helper: StunHelper) -> None:
    """It is there on every host, always: no site-packages, no event loop, no pydantic."""
    maps = Path(f"/proc/{helper.pid}/maps").read_text()
    assert "pydantic" not in maps
    assert "site-packages" not in maps
    environ = Path(f"/proc/{helper.pid}/environ").read_bytes()
    assert set(dict(pair.split(b"=", 1) for pair in environ.split(b"\0") if pair)) == {b"PYTHONPATH", b"PATH"}
