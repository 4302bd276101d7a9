"""Forks of small programs under the library: memory, descriptors, generations, and what the child looks like."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest

from ramet.errors import ForkError
from tests.unit.native.native_kit import PROGRAMS, RAM_BYTES, Nursery, Process, compile_c

PAGE = 4096
BIG = 40 << 20
"""No other mapping has this size."""


def test_memory_is_shared_at_the_fork_and_apart_afterwards(nursery: Nursery) -> None:
    source = nursery.launch()
    source.ask("put 0 7")
    source.ask(f"put {RAM_BYTES - 1} 9")
    clone = nursery.fork(source)
    assert (clone.number("get 0"), clone.number(f"get {RAM_BYTES - 1}")) == (7, 9)
    source.ask("put 0 1")
    clone.ask(f"put {RAM_BYTES - 1} 2")
    assert (source.number("get 0"), clone.number("get 0")) == (1, 7)
    assert (source.number(f"get {RAM_BYTES - 1}"), clone.number(f"get {RAM_BYTES - 1}")) == (9, 2)
    assert source.number("sum") == 10
    assert clone.number("sum") == 9


def test_pages_written_on_either_side_are_copied(nursery: Nursery) -> None:
    pages = RAM_BYTES // PAGE
    source = nursery.launch()
    source.ask("fill")  # adds 1 to the first byte of every page
    clone = nursery.fork(source)
    second = nursery.fork(source)
    for _ in range(3):
        source.ask("fill")
        clone.ask("fill")
    clone.ask("fill")
    assert [vm.number("sum") for vm in (source, clone, second)] == [4 * pages, 5 * pages, pages]
    assert nursery.fork(clone).number("sum") == 5 * pages


def test_the_file_that_names_the_ram_stays_empty(nursery: Nursery) -> None:
    source = nursery.launch()
    source.ask(f"put {PAGE} 5")
    for fd in source.fds():
        target = os.readlink(f"/proc/{source.pid}/fd/{fd}")
        if "ramet-ram" in target:
            assert os.stat(f"/proc/{source.pid}/fd/{fd}").st_blocks == 0
            break
    else:
        pytest.fail("the program has no file for its RAM")


def test_a_clone_has_its_own_arguments_environment_and_name(nursery: Nursery) -> None:
    source = nursery.launch()
    clone = nursery.fork(source, env={"GREETING": "good day", "LD_PRELOAD": "/nowhere.so"})
    assert clone.hello == "ready 3 number 2"
    assert clone.ask("env") == "good day"
    assert clone.proc("cmdline") == f"{nursery.program}\0forked\0number 2\0"
    assert "GREETING=good day\0" in clone.proc("environ")
    assert "/nowhere.so" not in clone.proc("environ")
    assert clone.proc("comm") == "guest-2\n"
    assert source.ask("preload") == clone.ask("preload") == "unset"  # programs started by a VM run without


def test_a_clone_is_a_sibling_and_carries_nothing_of_its_source(nursery: Nursery) -> None:
    source = nursery.launch()
    source.ask("heap 3000000")
    source.ask("many-maps 2000")
    clone = nursery.fork(source)
    status = dict(line.split(":\t", 1) for line in clone.proc("status").splitlines() if ":\t" in line)
    assert int(status["PPid"]) == os.getpid()
    assert int(status["SigBlk"], 16) == int(status["SigIgn"], 16) == 0
    assert int(status["SigCgt"], 16) & 0x7FFFFFFF == 0  # libc itself catches one of its own, above 31
    assert source.number("maps") > 2000
    assert clone.number("maps") < 60
    assert int(status["VmData"].split()[0]) < RAM_BYTES // 1024 + 12000  # RAM, a stack, and little else


def test_descriptors_arrive_in_order_and_all_else_is_closed(nursery: Nursery) -> None:
    source = nursery.launch()
    with open("/dev/null", "rb") as extra:
        os.set_inheritable(extra.fileno(), True)
        clone = nursery.fork(source)
    assert clone.fds() == [0, 1, 2, 3, 4, 5]  # 5: the RAM's file, opened by the program
    names = [os.readlink(f"/proc/{clone.pid}/fd/{fd}") for fd in range(5)]
    assert names[0] == names[1]
    assert names[0].startswith("socket:")
    assert names[2] == os.fspath(clone.stderr)
    assert "ramet-ram" in names[3]
    assert names[4].startswith("socket:")
    assert source.fds() == [0, 1, 2, *source.fds()[3:]]


def test_a_hundred_generations_do_not_wear(nursery: Nursery) -> None:
    """Each generation forks the next and ends. Mappings, descriptors, heap and addresses stay where they were."""
    process = nursery.launch()
    process.ask("put 12345 42")
    seen: list[tuple[int, str, int]] = []
    for generation in range(1, 101):
        child = nursery.fork(process)
        nursery.end(process)
        process = child
        process.ask("heap 1000000")
        seen.append((process.number("maps"), process.ask("brk"), len(process.fds())))
        process.ask(f"put {generation} 1")
    assert process.number("sum") == 142
    assert len(set(seen[1:])) == 1, seen
    with process.connect() as client:
        assert client.query().generation == 100
    stacks = [line for line in process.proc("maps").splitlines() if line.endswith("[stack]")]
    assert len(stacks) == 1


def test_fifty_clones_of_one_source_leave_it_as_it_was(nursery: Nursery) -> None:
    source = nursery.launch()
    first = nursery.fork(source)
    before = (source.number("maps"), source.fds())
    with source.connect() as client:
        clones = [nursery.fork(client) for _ in range(49)]
        assert client.query().forks == 50
    last = clones[-1]
    assert (last.number("maps"), last.fds()) == (first.number("maps"), first.fds())
    # the connection is closed by now, or about to be: the thread that serves closes its end when it sees it
    assert source.number("maps") == before[0]
    assert len(source.fds()) <= len(before[1]) + 1
    source.ask("put 0 3")
    assert [clone.number("get 0") for clone in (first, last)] == [0, 0]


def test_a_holder_serves_after_its_source_is_dead(nursery: Nursery) -> None:
    source = nursery.launch()
    source.ask("put 100 11")
    holder = nursery.hold(source)
    source.ask("put 100 12")
    nursery.end(source)
    clones = [nursery.fork(holder) for _ in range(3)]
    assert [clone.number("get 100") for clone in clones] == [11, 11, 11]
    assert holder.proc("comm") == "guest-2\n"
    nursery.end(holder)
    assert clones[0].number("get 100") == 11


def test_a_clone_outlives_all_its_ancestors(nursery: Nursery) -> None:
    source = nursery.launch()
    source.ask("put 1 1")
    child = nursery.fork(source)
    child.ask("put 2 2")
    grandchild = nursery.fork(child)
    nursery.end(source)
    nursery.end(child)
    assert [grandchild.number(f"get {i}") for i in (1, 2)] == [1, 2]
    assert nursery.fork(grandchild).number("get 2") == 2


def test_forks_while_other_threads_use_the_heap(nursery: Nursery) -> None:
    source = nursery.launch()
    source.ask("put 4 4")
    source.ask("hammer 4")
    before = source.number("hammered")
    for _ in range(25):
        clone = nursery.fork(source)
        assert clone.number("get 4") == 4
        assert "Threads:\t2\n" in clone.proc("status")  # main, and the one that serves forks
        nursery.end(clone)
    assert source.number("hammered") > before


def test_discarded_and_remapped_pages_are_empty_in_one_vm_only(nursery: Nursery) -> None:
    source = nursery.launch()
    source.ask(f"put {PAGE} 1")
    source.ask(f"put {3 * PAGE} 3")
    clone = nursery.fork(source)
    assert source.number(f"discard {PAGE}") == 0
    assert source.number(f"poison {3 * PAGE}") == 1
    assert (source.number(f"get {PAGE}"), source.number(f"get {3 * PAGE}")) == (0, 0)
    assert (clone.number(f"get {PAGE}"), clone.number(f"get {3 * PAGE}")) == (1, 3)
    assert nursery.fork(source).number("sum") == 0


def test_ram_that_was_split_into_several_mappings_is_adopted(nursery: Nursery) -> None:
    source = nursery.launch()
    source.ask("put 0 1")
    source.ask(f"put {9 * PAGE} 2")
    assert source.number(f"split {4 * PAGE}") == 0
    clone = nursery.fork(source)
    assert clone.number("sum") == 3
    clone.ask(f"put {4 * PAGE} 5")  # adopted with the rights that the program asked for
    assert clone.number("sum") == 8


def test_ram_with_a_hole_is_refused(nursery: Nursery) -> None:
    source = nursery.launch()
    assert source.number(f"unmap {4 * PAGE}") == 0
    with pytest.raises(ForkError, match="no longer mapped"):
        nursery.fork(source)


def test_huge_pages_end_with_the_first_fork(nursery: Nursery) -> None:
    source = nursery.launch(ram_bytes=32 << 20)
    clone = nursery.fork(source, ram_bytes=32 << 20)
    for process in (source, clone):
        smaps = process.proc("smaps").split("VmFlags:")
        flags = [part.splitlines()[0].split() for part in smaps[1:]]
        sizes = [part for part in smaps[:-1] if "Size:              32768 kB" in part]
        assert len(sizes) == 1
        assert "nh" in flags[smaps.index(sizes[0])]  # it asked for them, again, after the fork


def test_page_merging_is_the_owners_to_turn_on(nursery: Nursery) -> None:
    source = nursery.launch(ram_bytes=BIG)
    with source.connect() as client:
        assert not client.query().merging
        try:
            client.merge(True)
        except ForkError as error:
            pytest.skip(f"this kernel cannot merge pages: {error}")
        assert client.query().merging
    clone = nursery.fork(source, ram_bytes=BIG)
    with clone.connect() as client:
        assert client.query().merging
        client.merge(False)
        assert not client.query().merging
        assert "mg" not in _flags_of_ram(clone, BIG)
    assert "mg" in _flags_of_ram(source, BIG)  # every process is asked for itself


def _flags_of_ram(process: Process, ram_bytes: int) -> list[str]:
    """The kernel's flags of the one mapping of that size."""
    parts = process.proc("smaps").split("VmFlags:")
    size = f"Size: {ram_bytes // 1024:>18} kB"
    found = [flags.splitlines()[0].split() for before, flags in pairwise(parts) if size in before]
    assert len(found) == 1
    return found[0]


def test_ram_that_is_unmerged_piece_by_piece_is_one_mapping_again(nursery: Nursery) -> None:
    source = nursery.launch(ram_bytes=BIG)
    with source.connect() as client:
        try:
            client.merge(True)
        except ForkError as error:
            pytest.skip(f"this kernel cannot merge pages: {error}")
        client.merge(False)
    assert "mg" not in _flags_of_ram(source, BIG)


def test_a_child_that_maps_another_size_fails_and_says_so(nursery: Nursery) -> None:
    source = nursery.launch()
    clone = nursery.fork(source, ram_bytes=2 * RAM_BYTES, greet=False)
    assert clone.wait() == 3
    assert "were inherited" in clone.stderr.read_text()
    assert source.number("sum") == 0


def test_a_program_at_a_fixed_address_can_be_forked(nursery: Nursery, tmp_path: Path) -> None:
    """QEMU is not position-independent everywhere; and its heap begins elsewhere then."""
    fixed = compile_c(tmp_path / "fixed", "-O1", "-no-pie", "-fno-pie", os.fspath(PROGRAMS / "guest.c"), "-pthread")
    source = nursery.launch(program=fixed)
    source.ask("put 8 8")
    process: Process = source
    for _ in range(3):
        process = nursery.fork(process, program=fixed)
        process.ask("heap 500000")
    assert process.number("get 8") == 8


def test_a_fork_keeps_the_signals_out_of_the_serving_thread(nursery: Nursery) -> None:
    source = nursery.launch()
    nursery.fork(source)
    threads = {}
    for tid in os.listdir(f"/proc/{source.pid}/task"):
        text = Path(f"/proc/{source.pid}/task/{tid}/status").read_text(encoding="utf-8")
        lines = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        threads[lines["Name"]] = int(lines["SigBlk"], 16)
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGCHLD):
        assert threads["vmfork"] >> (number - 1) & 1
    assert threads[nursery.program.name] == 0
