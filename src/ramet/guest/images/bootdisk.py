"""Make a disk that starts by itself under a BIOS: MBR, GRUB in the gap behind it, one ext4 partition. No loop mount."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

from ramet.errors import ToolError
from ramet.guest.images.children import run
from ramet.model.units import MIB

PARTITION_OFFSET_BYTES = MIB
_SECTOR = 512
_BOOT_CODE_BYTES = 440  # then the disk's signature and the partition table
_GRUB = Path("/usr/lib/grub/i386-pc")
_GRUB_MODULES = (
    *("biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile", "echo", "test", "search", "reboot"),
    *("halt", "ls", "cat", "serial", "terminal"),
)
_TOOL_S = 300.0

# Spelled out, for the features that mke2fs switches on by itself differ by version, and GRUB reads only some.
_MKE2FS_CONF = """[defaults]
    base_features = sparse_super,filetype,resize_inode,dir_index,ext_attr
    blocksize = 4096
    inode_size = 256
    inode_ratio = 16384
[fs_types]
    ext4 = {
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
    }
"""


async def make_file_system(disk: Path, tree: Path, uuid: str, size_mib: int, scratch: Path, enter: list[str]) -> None:
    """Make `disk` a sparse file of `size_mib` with the content of `tree` as ext4 behind the first MiB.

    `enter` is put before the command: how to become the root that owns the tree's files.
    """
    config = scratch / "mke2fs.conf"
    await asyncio.to_thread(config.write_text, _MKE2FS_CONF)
    await asyncio.to_thread(_make_sparse, disk, size_mib * MIB)
    size_kib = (size_mib * MIB - PARTITION_OFFSET_BYTES) // 1024
    await run(
        [
            *(*enter, "mke2fs", "-q", "-F", "-t", "ext4", "-U", uuid, "-L", "root", "-m", "1"),
            *("-E", f"offset={PARTITION_OFFSET_BYTES},lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"),
            *("-d", tree, disk, f"{size_kib}k"),
        ],
        timeout_s=_TOOL_S,
        env={"MKE2FS_CONFIG": str(config)},
    )


def _make_sparse(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)


async def install_grub(disk: Path, scratch: Path) -> None:
    """Write partition table and boot loader; GRUB then reads /boot/grub/grub.cfg from the partition."""
    core = scratch / "core.img"
    await run(
        [
            *("grub-mkimage", "-O", "i386-pc", "-d", _GRUB, "-p", "(hd0,msdos1)/boot/grub", "-o", core),
            *_GRUB_MODULES,
        ],
        timeout_s=_TOOL_S,
    )
    await asyncio.to_thread(_write_boot_sectors, disk, core)


def _write_boot_sectors(disk: Path, core: Path) -> None:
    code, core_code = (_GRUB / "boot.img").read_bytes(), core.read_bytes()
    if len(core_code) > PARTITION_OFFSET_BYTES - _SECTOR:
        raise ToolError("GRUB's image does not fit before the first partition.")
    with disk.open("r+b") as file:
        # boot.img looks for the rest in sector 1, on the disk the BIOS started from: that is how both are built.
        file.write(code[:_BOOT_CODE_BYTES])
        file.write(_partition_table(disk.stat().st_size))
        file.write(core_code)


def _partition_table(size_bytes: int) -> bytes:
    """From the disk's signature to the end of sector 0: one active Linux partition over all but the first MiB."""
    start = PARTITION_OFFSET_BYTES // _SECTOR
    no_chs = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3sII", 0x80, no_chs, 0x83, no_chs, start, size_bytes // _SECTOR - start)
    return os.urandom(4) + bytes(2) + entry + bytes(48) + b"\x55\xaa"
