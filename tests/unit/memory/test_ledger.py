"""The ledger, on the kernel's text and on real processes."""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path

import pytest

from ramet.errors import DamagedError, NotFoundError
from ramet.memory.ledger import find_ram, guest_memory, measure, parse_smaps

MIB = 1 << 20
RAM = 64 * MIB


def block(
    start: int,
    size: int,
    *,
    permissions: str = "rw-p",
    inode: int = 0,
    name: str = "",
    kib: tuple[int, int, int, int] = (0, 0, 0, 0),
    flags: str = "rd wr mr mw me nr dd nh",
) -> str:
    """A mapping in the kernel's words; `kib` is shared clean, shared dirty, private clean, private dirty."""
    shared_clean, shared_dirty, private_clean, private_dirty = kib
    return (
        f"{start:x}-{start + size:x} {permissions} 00000000 00:00 {inode} {name:>20}\n"
        f"Size: {size // 1024:>18} kB\nKernelPageSize: 4 kB\nMMUPageSize: 4 kB\nRss: {sum(kib)} kB\n"
        f"Pss: {(shared_clean + shared_dirty) // 2 + private_clean + private_dirty} kB\nPss_Dirty: 7777 kB\n"
        f"Shared_Clean: {shared_clean} kB\nShared_Dirty: {shared_dirty} kB\n"
        f"Private_Clean: {private_clean} kB\nPrivate_Dirty: {private_dirty} kB\nReferenced: 9 kB\nAnonymous: 8 kB\n"
        f"Swap: 0 kB\nTHPeligible: 0\nVmFlags: {flags} \n"
    )


HEAP = block(0x1000_0000, MIB, name="[heap]", kib=(0, 10, 0, 20))
LIBRARY = block(0x2000_0000, MIB, permissions="r-xp", inode=77, name="/usr/lib/lib:odd name.so", kib=(100, 0, 0, 0))
GUARD = block(0x4FFF_F000, 0x1000, permissions="---p")
WHOLE = block(0x5000_0000, RAM, kib=(2, 100, 4, 200))


def smaps(*blocks: str) -> bytes:
    return "".join(blocks).encode()


def test_ram_and_the_rest_are_counted_apart() -> None:
    view = measure(smaps(HEAP, LIBRARY, GUARD, WHOLE), RAM)
    assert view.configured_bytes == RAM
    assert view.resident_bytes == 306 * 1024
    assert view.unique_bytes == 204 * 1024
    assert view.shared_bytes == 102 * 1024
    assert view.proportional_bytes == (51 + 204) * 1024
    assert view.process_overhead_bytes == (5 + 20 + 50) * 1024


def test_ram_that_the_kernel_has_split_is_summed() -> None:
    """Advice on a part of it (huge pages, page merging) splits a mapping."""
    parts = [block(0x5000_0000 + i * 16 * MIB, 16 * MIB, kib=(0, 0, 0, i)) for i in range(4)]
    view = measure(smaps(HEAP, *parts, block(0x5000_0000 + RAM, 0x1000, permissions="---p")), RAM)
    assert view.unique_bytes == 6 * 1024


def test_a_neighbour_of_another_kind_is_not_counted() -> None:
    """QEMU's own memory right before guest RAM: the kernel keeps them apart when their flags differ."""
    neighbour = block(0x5000_0000 - MIB, MIB, kib=(0, 0, 0, 999), flags="rd wr mr mw me ac")
    assert measure(smaps(neighbour, WHOLE), RAM).unique_bytes == 204 * 1024


def test_of_two_that_fit_the_one_outside_core_dumps_is_ram() -> None:
    chance = block(0x9000_0000, RAM, kib=(0, 0, 0, 50_000), flags="rd wr mr mw me ac")
    assert measure(smaps(WHOLE, chance), RAM).unique_bytes == 204 * 1024


def test_the_address_decides_where_it_is_known() -> None:
    twin = block(0x9000_0000, RAM, kib=(0, 0, 0, 5))
    assert measure(smaps(WHOLE, twin), RAM, 0x9000_0000).unique_bytes == 5 * 1024
    assert measure(smaps(WHOLE, twin), RAM, 0x5000_0000).unique_bytes == 204 * 1024


def test_a_mapping_with_a_name_of_its_own_may_be_ram() -> None:
    named = block(0x5000_0000, RAM, name="[anon:ramet]", kib=(0, 0, 0, 3))
    assert measure(smaps(named), RAM).unique_bytes == 3 * 1024


@pytest.mark.parametrize(
    "other",
    [
        block(0x5000_0000, RAM, inode=5, name="/memfd:ramet-ram (deleted)"),
        block(0x5000_0000, RAM, permissions="rw-s"),
        block(0x5000_0000, RAM, permissions="rwxp"),
        block(0x5000_0000, RAM, name="[heap]"),
        block(0x5000_0000, RAM + MIB),
        block(0x5000_0000, RAM // 2) + block(0x5000_0000 + RAM // 2 + 0x1000, RAM // 2),
    ],
)
def test_what_cannot_be_guest_ram_is_not_taken_for_it(other: str) -> None:
    assert find_ram(parse_smaps(smaps(HEAP, other)), RAM) == []
    with pytest.raises(NotFoundError, match="64 MiB"):
        measure(smaps(HEAP, other), RAM)


@pytest.mark.parametrize("text", [b"nonsense", b"nonsense\nVmFlags: rd\n", smaps(WHOLE)[:-40]])
def test_text_that_is_no_account_is_damage(text: bytes) -> None:
    with pytest.raises(DamagedError):
        measure(text, RAM)


def test_a_real_fork_shares_and_then_diverges() -> None:
    """128 pages are written before a fork; the child writes 32 of them again."""
    size = 48 * MIB + 8192
    page = mmap.PAGESIZE
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        ram.madvise(mmap.MADV_DONTDUMP)
        ram.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(128):
            ram[at * page] = 1
        before = guest_memory(os.getpid(), size)
        assert (before.resident_bytes, before.unique_bytes, before.shared_bytes) == (128 * page, 128 * page, 0)
        ready_read, ready_write = os.pipe()
        child = os.fork()
        if child == 0:
            for at in range(32):
                ram[at * page] = 2
            os.write(ready_write, b"x")
            signal.pause()
        try:
            assert os.read(ready_read, 1) == b"x"
            view = guest_memory(child, size)
            assert (view.unique_bytes, view.shared_bytes) == (32 * page, 96 * page)
            mine = guest_memory(os.getpid(), size)
            assert mine.proportional_bytes + view.proportional_bytes == (128 + 32) * page
            assert view.process_overhead_bytes > 0
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(ready_read)
            os.close(ready_write)


def test_ram_and_overhead_add_up_to_the_processs_own_account() -> None:
    size = 40 * MIB + 4096
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        ram.madvise(mmap.MADV_DONTDUMP)
        ram.write(b"x" * (8 * MIB))
        view = guest_memory(os.getpid(), size)
        rollup = Path("/proc/self/smaps_rollup").read_text()
        pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    assert view.proportional_bytes + view.process_overhead_bytes == pytest.approx(pss, rel=0.02)


def test_a_process_that_is_gone_is_an_os_error() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError, match=r"No such (file|process)"):
        guest_memory(child, RAM)
