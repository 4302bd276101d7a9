"""The namespace and the thread in it: made, found, removed; nobody else is moved."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.errors import DeadlineError, InternalError, ToolError
from ramet.network.namespace import Namespace, NamespaceThread, run_tool
from tests.unit.network.network_kit import needs_privilege, traces

pytestmark = needs_privilege


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace(f"ramet-test-{secrets.token_hex(4)}")
    yield made
    made.remove()
    assert traces(made.name) == []


def inode(path: str = "/proc/thread-self/ns/net") -> int:
    return os.stat(path).st_ino


def test_it_is_made_once_found_again_and_removed(namespace: Namespace) -> None:
    before = inode()
    assert namespace.ensure()
    first = namespace.path.stat().st_ino
    assert not Namespace(namespace.name).ensure()
    assert namespace.path.stat().st_ino == first
    assert inode() == before != first
    namespace.remove()
    namespace.remove()
    assert not namespace.exists()


def test_what_a_crash_left_half_made_is_made_whole(namespace: Namespace) -> None:
    namespace.path.parent.mkdir(exist_ok=True)
    namespace.path.touch()
    assert not namespace.exists()
    assert namespace.ensure()
    assert namespace.exists()


async def test_the_thread_is_inside_and_the_caller_is_not(namespace: Namespace) -> None:
    namespace.ensure()
    outside = inode()
    thread = NamespaceThread(namespace)
    await thread.start()
    try:
        assert await thread.run(inode) == namespace.path.stat().st_ino
        assert inode() == outside
        assert await asyncio.to_thread(inode) == outside
        listed = await thread.run(run_tool, ["ip", "-br", "link"], "", 5.0)
        assert [line.split()[0] for line in listed.splitlines()] == ["lo"]
        with pytest.raises(ToolError, match="nowhere"):
            await thread.run(run_tool, ["ip", "link", "set", "nowhere", "up"], "", 5.0)
    finally:
        await thread.close()
    with pytest.raises(InternalError):
        await thread.run(inode)


async def test_a_thread_that_cannot_enter_runs_nothing(tmp_path: Path) -> None:
    thread = NamespaceThread(Namespace("nothing", tmp_path))
    with pytest.raises(FileNotFoundError):
        await thread.start()
    with pytest.raises(InternalError):
        await thread.run(inode)


async def test_a_result_that_comes_too_late_is_discarded(namespace: Namespace) -> None:
    namespace.ensure()
    thread = NamespaceThread(namespace)
    await thread.start()
    release, discarded = threading.Event(), []

    def slow() -> socket.socket:
        release.wait(10)
        return socket.socket()

    def discard(sock: socket.socket) -> None:
        discarded.append(sock)
        sock.close()

    try:
        with pytest.raises(DeadlineError):
            await thread.run(slow, timeout_s=0.05, discard=discard)
        waiting = asyncio.create_task(thread.run(slow, discard=discard))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    finally:
        release.set()
        await thread.close()
    assert 1 <= len(discarded) <= 2
    assert all(sock.fileno() == -1 for sock in discarded)
