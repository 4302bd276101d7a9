"""Zygotes: forks that go on from before main, and are like any other fork of a program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import ForkError
from ramet.hypervisor.fork import ZYGOTE, ForkClient, environment
from tests.unit.native.native_kit import PROGRAMS, RAM_BYTES, TIMEOUT_S, Nursery, Process, compile_c

PAGE = 4096


@pytest.fixture
def zygote(nursery: Nursery) -> Process:
    """Of a program that has put 7 at 0 and 9 at its end, and has ended."""
    source = nursery.launch()
    source.ask("put 0 7")
    source.ask(f"put {RAM_BYTES - 1} 9")
    zygote = nursery.zygote(source)
    nursery.end(source)
    return zygote


def threads(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/task"))


def test_children_have_the_memory_and_each_its_own(nursery: Nursery, zygote: Process) -> None:
    one, two = nursery.fork(zygote), nursery.fork(zygote)
    assert [vm.number("get 0") for vm in (one, two)] == [7, 7]
    one.ask("put 0 1")
    two.ask("fill")
    assert [vm.number("get 0") for vm in (one, two, nursery.fork(zygote))] == [1, 8, 7]
    assert nursery.fork(zygote).number(f"get {RAM_BYTES - 1}") == 9


def test_a_child_is_called_with_what_is_its_own(nursery: Nursery, zygote: Process) -> None:
    child = nursery.fork(zygote, env={"GREETING": "good day", "LD_PRELOAD": "/nowhere.so"})
    assert child.hello.startswith("ready 3 number ")
    assert child.ask("env") == "good day"
    assert child.ask("preload") == "unset"
    assert child.proc("cmdline") == f"{nursery.program}\0forked\0number 3\0"
    assert "GREETING=good day\0" in child.proc("environ")
    assert child.proc("comm") == "guest-3\n"
    assert zygote.proc("comm") == "guest-2\n"
    assert child.fds() == [0, 1, 2, 3, 4, 5]


def test_a_child_is_what_a_child_of_fork_is(nursery: Nursery, zygote: Process) -> None:
    child = nursery.fork(zygote)
    status = dict(line.split(":\t", 1) for line in child.proc("status").splitlines() if ":\t" in line)
    assert int(status["PPid"]) == os.getpid()
    assert int(status["SigBlk"], 16) == 0
    assert child.ask("self") == f"{child.pid} {child.pid} 0"  # libc signals the right thread
    assert child.ask("hammer 2") == "ok"
    assert child.ask("heap 1000000") == "1"
    nursery.end(nursery.fork(zygote))
    assert child.number("sum") == 16


def test_canaries_differ(nursery: Nursery, zygote: Process) -> None:
    canaries = {nursery.fork(zygote).ask("canary") for _ in range(3)}
    assert len(canaries) == 3
    assert all(canary.endswith("00") for canary in canaries)


def test_children_of_zygotes_are_forked_and_become_zygotes(nursery: Nursery, zygote: Process) -> None:
    child = nursery.fork(zygote)
    child.ask("put 1 3")
    grandchild = nursery.fork(child)
    assert grandchild.number("sum") == 19
    second = nursery.zygote(grandchild)
    nursery.end(grandchild)
    assert nursery.fork(second).number("sum") == 19
    with child.connect() as client, second.connect() as other:
        assert [client.query().generation, other.query().generation] == [2, 4]


def test_a_zygote_does_not_wear(nursery: Nursery, zygote: Process) -> None:
    shapes = set()
    for _ in range(50):
        child = nursery.fork(zygote)
        shapes.add((child.number("maps"), child.ask("brk"), len(child.fds())))
        nursery.end(child)
    assert len(shapes) == 1
    before = zygote.proc("maps").count("\n")
    nursery.end(nursery.fork(zygote))
    assert zygote.proc("maps").count("\n") == before
    assert threads(zygote) == 1
    assert len(zygote.fds()) <= 7


def test_another_program_is_refused(nursery: Nursery, zygote: Process) -> None:
    with pytest.raises(ForkError, match="this is a zygote of"):
        nursery.hold(zygote)
    assert nursery.fork(zygote).number("get 0") == 7


def test_a_zygote_tells_of_the_memory_that_it_keeps(zygote: Process) -> None:
    with ForkClient.connect(zygote.control, TIMEOUT_S) as client:
        info = client.query()
    assert info.zygotes
    assert (info.pid, info.ram_bytes, info.generation) == (zygote.pid, RAM_BYTES, 1)


@pytest.mark.parametrize(("anew", "told"), [("", "1 0 1"), ("1", "1 1 0")])
def test_threads_that_constructors_begin_are_begun_once_in_each_child(
    nursery: Nursery, public: Path, anew: str, told: str
) -> None:
    """By the handler that begins them anew after a fork, as QEMU's does, else by the library."""
    sources = (os.fspath(PROGRAMS / name) for name in ("guest.c", "constructors.c"))
    nursery.program = compile_c(public / "constructed", "-O1", *sources, "-pthread")
    zygote = nursery.zygote(nursery.launch())
    env = {"BEGIN_ANEW": "1"} if anew else {}
    child = nursery.fork(zygote, env=env)
    assert child.ask("constructors") == told
    assert threads(zygote) == 1


def test_a_zygote_that_was_not_forked_ends(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_zygote(*args: Any, **more: Any) -> dict[str, str]:
        return {**environment(*args, **more), ZYGOTE: "1"}

    monkeypatch.setattr("tests.unit.native.native_kit.environment", with_zygote)
    with pytest.raises(AssertionError, match="holds nothing"):
        nursery.launch()
