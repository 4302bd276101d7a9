"""Dear and cheap looks at real processes: the cheap ones must say the same."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.errors import NotFoundError
from ramet.memory.holdings import Holding, Holdings
from ramet.memory.ledger import Place, guest_memory_again
from ramet.memory.reading import PAGE, feel, look_again, look_whole
from ramet.model.memory import MemoryKind

SIZE = (48 << 20) + 4096


def stat_field(pid: int, number: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[number - 3])


def holding(pid: int) -> Holding:
    return Holding("1", "web", MemoryKind.VM, "1", pid, stat_field(pid, 22), SIZE)


@pytest.fixture
def ram() -> Iterator[mmap.mmap]:
    """128 pages of guest RAM in this process."""
    with mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        ram.madvise(mmap.MADV_DONTDUMP)
        ram.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(128):
            ram[at * PAGE] = 1
        yield ram


@pytest.fixture
def fork() -> Iterator[Callable[[], int]]:
    children = []

    def make() -> int:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
        return child

    yield make
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_look_at_guest_ram_alone_says_what_a_whole_one_does(ram: mmap.mmap, fork: Callable[[], int]) -> None:
    me = holding(os.getpid())
    first = look_whole(me)
    assert first.view.unique_bytes == 128 * PAGE
    assert first.view.page_tables_bytes > 0
    fork()
    for at in range(32):
        ram[at * PAGE] = 2
    again = look_again(me, first)
    assert (again.view.unique_bytes, again.view.shared_bytes) == (32 * PAGE, 96 * PAGE)
    assert again.whole_at == first.whole_at
    assert again.view.process_overhead_bytes == first.view.process_overhead_bytes
    assert again.at >= first.at
    whole = look_whole(me)
    assert (whole.view.resident_bytes, whole.view.proportional_bytes) == (
        again.view.resident_bytes,
        again.view.proportional_bytes,
    )


def test_when_the_rest_of_the_process_seems_to_have_grown_all_is_read(ram: mmap.mmap) -> None:
    me = holding(os.getpid())
    first = look_whole(me)
    lied = replace(first, rest_bytes=first.rest_bytes - (64 << 20))
    assert look_again(me, lied).whole_at > first.whole_at


def test_guest_ram_that_is_elsewhere_is_looked_for(ram: mmap.mmap) -> None:
    me = holding(os.getpid())
    first = look_whole(me)
    gone = Place(first.place.start - (1 << 30), first.place.start - (1 << 30) + SIZE)
    with pytest.raises(NotFoundError):
        guest_memory_again(me.pid, gone, first.view)
    assert look_again(me, replace(first, place=gone)).place == first.place


def test_a_pulse_grows_with_what_is_written(ram: mmap.mmap) -> None:
    me = holding(os.getpid())
    before = feel(me)
    for at in range(1000, 1100):
        ram[at * PAGE] = 1
    assert feel(me).minor_faults >= before.minor_faults + 100


@pytest.mark.parametrize("look", [feel, look_whole])
def test_another_process_with_its_pid_is_not_taken_for_it(look: Callable[[Holding], object], ram: mmap.mmap) -> None:
    with pytest.raises(NotFoundError, match="'web' is gone"):
        look(replace(holding(os.getpid()), start_ticks=1))


def test_a_process_that_is_gone_is_not_found(fork: Callable[[], int]) -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    one = holding(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with pytest.raises(NotFoundError):
        look_whole(one)


def test_holdings_are_kept_as_long_as_their_block() -> None:
    holdings, one = Holdings(), holding(os.getpid())
    with holdings.keep(one):
        assert holdings.all() == [one]
    assert holdings.all() == []
