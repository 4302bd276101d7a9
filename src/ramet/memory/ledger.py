"""Who holds how much of which memory: one VM's guest RAM, as the kernel counts it in /proc/PID/smaps.

Guest RAM is private anonymous memory that forks share copy-on-write. The kernel knows for every page how many processes
map it: Private is a VM's own, Shared is mapped by others too, and Pss has each page divided by the number of its users,
so that sums of Pss over all VMs are what the host really spends.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.errors import DamagedError, NotFoundError
from ramet.model.units import format_bytes
from ramet.model.views import MemoryView

_HEAD: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+) *(.*)")
_COUNTER: Final = re.compile(rb"^(\w+): +(\d+) kB$", re.MULTILINE)
_FLAGS: Final = b"\nVmFlags:"  # the last line about each mapping
_HEADS: Final = re.compile(rb"^[0-9a-f]+-([0-9a-f]+) \S{4} ", re.MULTILINE)
_PAGE_TABLES: Final = re.compile(rb"^VmPTE:\s+(\d+) kB$", re.MULTILINE)
_CHUNK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping of a process. `account` is what the kernel writes about it, read only where it is needed."""

    start: int
    end: int
    permissions: bytes
    inode: int
    name: bytes
    account: bytes
    flags: bytes

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def may_be_ram(self) -> bool:
        """Private, anonymous, no heap or stack; a mapping may carry a name of its own ([anon:…])."""
        return self.permissions == b"rw-p" and self.inode == 0 and (not self.name or self.name.startswith(b"[anon:"))

    @property
    def is_dumped(self) -> bool:
        """May stand in a core dump."""
        return b"dd" not in self.flags.split()

    @property
    def pss(self) -> int:
        """Bytes."""
        _, _, text = self.account.partition(b"\nPss:")
        return 1024 * int(text[: text.index(b"kB")])

    def counters(self) -> dict[bytes, int]:
        """Bytes by the kernel's names: Rss, Pss, Private_Dirty and so on."""
        return {key: 1024 * int(value) for key, value in _COUNTER.findall(self.account)}


@dataclass(frozen=True, slots=True)
class Place:
    """Where guest RAM lies in a process: it stays there for the life of the process."""

    start: int
    end: int


def guest_memory(pid: int, ram_bytes: int, ram_address: int | None = None) -> MemoryView:
    """The guest RAM of the VM whose process is `pid`. `ram_address` is where the fork library says that it lies.

    The kernel walks the page tables for this, some milliseconds a GiB: call it in a thread. Raises NotFoundError when
    the process maps no such RAM, OSError when it is gone.
    """
    return locate(pid, ram_bytes, ram_address)[0]


def locate(pid: int, ram_bytes: int, ram_address: int | None = None) -> tuple[MemoryView, Place]:
    """Like `guest_memory`, with where its RAM is, so that `guest_memory_again` need not look for it."""
    mappings = parse_smaps(Path(f"/proc/{pid}/smaps").read_bytes())
    view, place = _measure(mappings, ram_bytes, ram_address)
    return view.model_copy(update={"page_tables_bytes": page_tables_bytes(pid)}), place


def guest_memory_again(pid: int, place: Place, before: MemoryView) -> MemoryView:
    """Guest RAM alone, a fifth of the price: QEMU's other three hundred mappings are those of `before`.

    They lie behind guest RAM, in a clone all of them, and the kernel counts as it is read: we stop after guest RAM.
    Raises what `guest_memory` does; NotFoundError also when guest RAM is not where it was.
    """
    ram = [m for m in parse_smaps(_read_up_to(pid, place.end)) if _lies_in(m, place)]
    if sum(mapping.size for mapping in ram) != place.end - place.start:
        raise NotFoundError("Guest RAM is not where it was.")
    fields = {**_ram_fields(ram), "page_tables_bytes": page_tables_bytes(pid)}
    return before.model_copy(update=fields)


def page_tables_bytes(pid: int) -> int:
    """VmPTE: what the kernel spends on the process's page tables, which no Pss shows."""
    found = _PAGE_TABLES.search(Path(f"/proc/{pid}/status").read_bytes())
    return 1024 * int(found[1]) if found else 0


def measure(smaps: bytes, ram_bytes: int, ram_address: int | None = None) -> MemoryView:
    """Like `guest_memory`, from the text of an smaps file. Raises NotFoundError, DamagedError."""
    return _measure(parse_smaps(smaps), ram_bytes, ram_address)[0]


def _measure(mappings: Sequence[Mapping], ram_bytes: int, ram_address: int | None) -> tuple[MemoryView, Place]:
    ram = find_ram(mappings, ram_bytes, ram_address)
    if not ram:
        raise NotFoundError(f"The process maps no guest RAM of {format_bytes(ram_bytes)}.")
    fields = _ram_fields(ram)
    # From the same reading rather than from smaps_rollup: a guest that writes hard would come out negative between
    # two. The kernel cuts each Pss to whole KiB, which loses about 150 KiB over a QEMU's mappings.
    overhead = sum(mapping.pss for mapping in mappings) - fields["proportional_bytes"]
    view = MemoryView(configured_bytes=ram_bytes, process_overhead_bytes=overhead, **fields)
    return view, Place(ram[0].start, ram[-1].end)


def _ram_fields(ram: Iterable[Mapping]) -> dict[str, int]:
    """Fields of MemoryView that the mappings of guest RAM tell."""
    counted: Counter[bytes] = Counter()
    for mapping in ram:
        counted.update(mapping.counters())
    return {
        "resident_bytes": counted[b"Rss"],
        "unique_bytes": counted[b"Private_Clean"] + counted[b"Private_Dirty"],
        "shared_bytes": counted[b"Shared_Clean"] + counted[b"Shared_Dirty"],
        "proportional_bytes": counted[b"Pss"],
        "swapped_bytes": counted[b"SwapPss"],
    }


def _lies_in(mapping: Mapping, place: Place) -> bool:
    return mapping.may_be_ram and mapping.start >= place.start and mapping.end <= place.end


def _read_up_to(pid: int, end: int) -> bytes:
    """The text of smaps up to the mapping that ends at `end`, or behind it."""
    chunks, ends, accounts = [], [0], 0
    fd = os.open(f"/proc/{pid}/smaps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while chunk := os.read(fd, _CHUNK):
            chunks.append(chunk)
            ends += (int(found, 16) for found in _HEADS.findall(chunk))
            accounts += chunk.count(_FLAGS)
            # The kernel hands out whole accounts. If one were cut in two, the numbers would differ, and all is read.
            if ends[-1] >= end and accounts == len(ends) - 1 and chunk.endswith(b"\n"):
                break
    finally:
        os.close(fd)
    return b"".join(chunks)


def find_ram(mappings: Sequence[Mapping], ram_bytes: int, ram_address: int | None = None) -> list[Mapping]:
    """The mappings that make up guest RAM, which the kernel may have split; empty when there are none."""
    if ram_address is not None:
        return [m for m in mappings if m.may_be_ram and m.start < ram_address + ram_bytes and m.end > ram_address]
    candidates = [part for run in _runs(mappings) for part in _parts_of_size(run, ram_bytes)]
    # QEMU's own memory may have the same size by chance; guest RAM is kept out of core dumps (dump=off).
    return max(candidates, key=lambda part: (not part[0].is_dumped, part[0].counters().get(b"Rss", 0)), default=[])


def _runs(mappings: Iterable[Mapping]) -> Iterator[list[Mapping]]:
    """Neighbours without a gap that may be RAM."""
    run: list[Mapping] = []
    for mapping in mappings:
        if run and not (mapping.may_be_ram and mapping.start == run[-1].end):
            yield run
            run = []
        if mapping.may_be_ram:
            run.append(mapping)
    if run:
        yield run


def _parts_of_size(run: Sequence[Mapping], size: int) -> Iterator[list[Mapping]]:
    """Neighbours within a run that add up to exactly `size`."""
    first = 0
    for last, mapping in enumerate(run):
        while mapping.end - run[first].start > size and first < last:
            first += 1
        if mapping.end - run[first].start == size:
            yield list(run[first : last + 1])


def parse_smaps(smaps: bytes) -> list[Mapping]:
    """The mappings in the text of an smaps file, in order. Raises DamagedError when it is not one."""
    mappings = []
    account, *parts = smaps.split(_FLAGS)
    for part in parts:
        flags, _, following = part.partition(b"\n")
        mappings.append(_mapping(account, flags))
        account = following
    if account:
        raise DamagedError("The kernel's account of a process's memory is cut short.")
    return mappings


def _mapping(account: bytes, flags: bytes) -> Mapping:
    head = _HEAD.match(account)
    if head is None or b"\nPss:" not in account:
        raise DamagedError("The kernel's account of a process's memory is not understood.")
    start, end, permissions, inode, name = head.groups()
    return Mapping(int(start, 16), int(end, 16), permissions, int(inode), name, account, flags)
