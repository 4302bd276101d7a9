"""Texts of /proc/PID/smaps as the kernel would write them about processes that share pages as a test says."""

from __future__ import annotations

from collections.abc import Collection

PAGE = 4096
RAM_AT = 0x7F00_0000_0000


def account(
    start: int,
    size: int,
    *,
    private: int = 0,
    shared: int = 0,
    pss: int = 0,
    swap: int = 0,
    permissions: str = "rw-p",
    inode: int = 0,
    name: str = "",
    flags: str = "rd wr mr mw me nr dd nh",
) -> str:
    """One mapping; numbers in bytes. All of it dirty, as anonymous memory is."""
    return (
        f"{start:x}-{start + size:x} {permissions} 00000000 00:00 {inode} {name:>20}\n"
        f"Size: {size >> 10:>18} kB\nKernelPageSize: 4 kB\nMMUPageSize: 4 kB\nRss: {private + shared >> 10} kB\n"
        f"Pss: {pss >> 10} kB\nPss_Dirty: {pss >> 10} kB\nShared_Clean: 0 kB\nShared_Dirty: {shared >> 10} kB\n"
        f"Private_Clean: 0 kB\nPrivate_Dirty: {private >> 10} kB\nReferenced: 0 kB\nAnonymous: 0 kB\nKSM: 0 kB\n"
        f"Swap: {swap >> 10} kB\nSwapPss: {swap >> 10} kB\nTHPeligible: 0\nVmFlags: {flags} \n"
    )


def library(size: int, users: int) -> str:
    """Code that `users` processes run."""
    return account(
        0x2000_0000, size, shared=size, pss=size // users, permissions="r-xp", inode=77, name="/usr/lib/x.so"
    )


def ram_texts(size: int, pages: Collection[frozenset[int]], processes: int) -> dict[int, bytes]:
    """`pages`: for each page of guest RAM, which processes map it. The text of each process's smaps.

    As the kernel counts: a page that one process maps is Private, others Shared; Pss has each page divided by the
    number of its users, is summed up in fractions and cut to whole KiB.
    """
    return {process: _text(size, pages, process).encode() for process in range(processes)}


def _text(size: int, pages: Collection[frozenset[int]], process: int) -> str:
    mine = [users for users in pages if process in users]
    private = PAGE * sum(len(users) == 1 for users in mine)
    pss = sum(PAGE / len(users) for users in mine)
    ram = account(RAM_AT, size, private=private, shared=PAGE * len(mine) - private, pss=int(pss))
    return ram + library(1 << 20, 4)
