"""Take the kernel proper out of a bzImage, so that a guest need not decompress it at every boot.

Under software emulation the self-extraction of an xz kernel takes longer than the rest of the boot. QEMU starts an
uncompressed ELF kernel by its PVH entry point. Offsets are from the kernel's Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess

_SETUP_SECTORS = 0x1F1
_MAGIC = 0x202
_PAYLOAD = 0x248
_TOOLS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}
_MAX_BYTES = 512 << 20
# An ELF note: name size 4, descriptor size, type 18 (XEN_ELFNOTE_PHYS32_ENTRY), "Xen".
_PVH_NOTES = tuple(struct.pack("<III4s", 4, size, 18, b"Xen") for size in (4, 8))


def _payload(image: bytes) -> bytes | None:
    if len(image) < 0x250 or image[_MAGIC : _MAGIC + 4] != b"HdrS":
        return None
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = ((image[_SETUP_SECTORS] or 4) + 1) * 512 + offset
    # Its last four bytes are the uncompressed size, not part of the compressed stream.
    return image[start : start + length - 4]


def _decompressed(payload: bytes) -> bytes | None:
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(memlimit=1 << 30).decompress(payload, _MAX_BYTES)
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload)
    tool = _TOOLS.get(payload[:4])
    if tool is None:
        return None
    done = subprocess.run([tool, "-dc"], input=payload, capture_output=True, timeout=120)
    return done.stdout if done.returncode == 0 else None


def direct_kernel(image: bytes) -> bytes | None:
    """The ELF kernel inside a bzImage if QEMU can enter it directly; None otherwise. Blocking, about a second."""
    payload = _payload(image)
    kernel = _decompressed(payload) if payload else None
    if kernel is None or not kernel.startswith(b"\x7fELF") or not any(note in kernel for note in _PVH_NOTES):
        return None
    return kernel
