"""The sampler on real processes: what changed is read, in turn, and nothing else."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.host.memory_sampler import MemorySampler, SamplerLimits
from ramet.memory.holdings import Holding
from ramet.memory.reading import PAGE
from ramet.model.memory import MemoryKind

SIZE = (32 << 20) + 8192
PAGES = 256


def holding(pid: int, name: str) -> Holding:
    text = Path(f"/proc/{pid}/stat").read_text()
    ticks = int(text[text.rindex(")") + 2 :].split()[19])
    return Holding(name, name, MemoryKind.VM, "family", pid, ticks, SIZE)


@pytest.fixture
def ram() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        ram.madvise(mmap.MADV_DONTDUMP)
        ram.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(PAGES):
            ram[at * PAGE] = 1
        yield ram


@pytest.fixture
def held(ram: mmap.mmap) -> Iterator[list[Holding]]:
    """This process and a fork of it."""
    child = os.fork()
    if child == 0:
        signal.pause()
    holdings = [holding(os.getpid(), "mine"), holding(child, "child")]
    yield holdings
    if holdings[-1].pid == child:
        end(child)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def sampler(held: list[Holding], busy: set[str] | None = None) -> MemorySampler:
    rooms = SimpleNamespace(holdings=SimpleNamespace(all=lambda: held))
    floor = cast("Any", SimpleNamespace(machines={}, rooms=rooms))
    return MemorySampler(floor, (busy or set()).__contains__, SamplerLimits(every_s=1.0, cpu_percent=50.0))


async def test_a_round_reads_what_was_never_read_and_the_next_one_nothing(held: list[Holding]) -> None:
    one = sampler(held)
    await one.refresh()
    assert {row.name for row in one.ledger.rows()} == {"mine", "child"}
    child = next(row for row in one.ledger.rows() if row.name == "child")
    assert child.shared_bytes == PAGES * PAGE
    assert child.common_bytes == PAGES * PAGE // 2
    assert one.readings == 2
    assert one.cpu_s > 0


async def test_what_changed_is_read_again(held: list[Holding], ram: mmap.mmap) -> None:
    one = sampler(held)
    await one.measure(["mine", "child"])
    for at in range(PAGES):
        ram[at * PAGE] = 2
    await one.refresh()
    mine = next(row for row in one.ledger.rows() if row.name == "mine")
    assert mine.unique_bytes == PAGES * PAGE


async def test_one_that_an_operation_works_on_is_not_read_in_turn(held: list[Holding]) -> None:
    one = sampler(held, {"mine"})
    await one.refresh()
    assert [row.name for row in one.ledger.rows()] == ["child"]
    await one.measure(["mine"])  # but when it is asked for
    assert len(one.ledger.rows()) == 2


async def test_one_that_ends_meanwhile_is_left_out(held: list[Holding]) -> None:
    one = sampler(held)
    await one.refresh()
    end(held[1].pid)
    await one.measure(["mine", "child"])
    held.pop()
    one.sync()
    assert [row.name for row in one.ledger.rows()] == ["mine"]


async def test_looking_again_at_once_costs_nothing(held: list[Holding]) -> None:
    one = sampler(held)
    await one.refresh()
    await one.refresh()
    assert one.readings == 2


async def test_it_goes_on_after_an_error_of_ours(held: list[Holding], monkeypatch: pytest.MonkeyPatch) -> None:
    one, calls = sampler(held), []

    async def fails() -> None:
        calls.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(one, "round", fails)
    monkeypatch.setattr(one, "_limits", SamplerLimits(every_s=0.001))
    running = asyncio.create_task(one.run())
    async with asyncio.timeout(10):
        while len(calls) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.wait([running])


async def test_a_round_stays_within_its_share(held: list[Holding]) -> None:
    one = sampler(held)
    async with asyncio.timeout(30):
        await one.round()
    assert one.readings == 2
