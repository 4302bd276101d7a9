"""Device-state streams for tests: one that a real QEMU wrote, and a builder for those it could have written."""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REAL_STREAM = lzma.decompress((Path(__file__).parent / "data" / "four-nics-qemu-7.2.state.xz").read_bytes())
"""QEMU 7.2, q35, 64 MiB, `-S`, a BIOS of zeroes; cards: virtio-net and e1000e and vmxnet3 behind root ports (in this
order: addresses …:01 to …:03), and a virtio-net on the root bus (…:04, without a peer)."""

REAL_MACS = {number: f"52:54:00:aa:bb:0{number}" for number in range(1, 5)}


def counted(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def be(number: int, size: int) -> bytes:
    return number.to_bytes(size, "big")


@dataclass
class StreamBuilder:
    """Writes what QEMU writes. Each method adds one piece; `build` closes the stream with its description."""

    data: bytearray = field(default_factory=lambda: bytearray(b"QEVM" + be(3, 4)))
    devices: list[dict[str, Any]] = field(default_factory=list)
    page_size: int = 4096

    def configuration(
        self, *capabilities: str, page_bits: int | None = None, uuid: bytes | None = None
    ) -> StreamBuilder:
        self.data += b"\x07" + be(len("pc-q35-7.2"), 4) + b"pc-q35-7.2"
        if page_bits is not None:
            self.data += b"\x05" + counted("configuration/target-page-bits") + be(1, 4) + be(page_bits, 4)
        if capabilities:
            self.data += b"\x05" + counted("configuration/capabilities") + be(1, 4) + be(len(capabilities), 4)
            self.data += b"".join(counted(name) for name in capabilities)
        if uuid is not None:
            self.data += b"\x05" + counted("configuration/uuid") + be(1, 4) + uuid
        return self

    def ram_start(self, blocks: dict[str, int], *, with_address: bool, section_id: int = 2) -> StreamBuilder:
        self.data += b"\x01" + be(section_id, 4) + counted("ram") + be(0, 4) + be(4, 4)
        self.data += be(sum(blocks.values()) | 0x04, 8)
        for name, size in blocks.items():
            self.data += counted(name) + be(size, 8) + (be(0, 8) if with_address else b"")
        self.data += be(0x10, 8)
        return self.footer(section_id)

    def ram_pages(self, pages: bytes, *, kind: int = 2, section_id: int = 2) -> StreamBuilder:
        self.data += bytes([kind]) + be(section_id, 4) + pages + be(0x10, 8)
        return self.footer(section_id)

    def command(self, number: int, payload: bytes = b"") -> StreamBuilder:
        self.data += b"\x08" + be(number, 2) + be(len(payload), 2) + payload
        return self

    def device(self, name: str, payload: bytes, description: dict[str, Any], *, section_id: int = 3) -> StreamBuilder:
        self.data += b"\x04" + be(section_id, 4) + counted(name) + be(0, 4) + be(1, 4) + payload
        self.devices.append({"name": name, "instance_id": 0, "version": 1, **description})
        return self.footer(section_id)

    def footer(self, section_id: int) -> StreamBuilder:
        self.data += b"\x7e" + be(section_id, 4)
        return self

    def build(self, **description: Any) -> bytes:
        text = json.dumps({"page_size": self.page_size, "devices": self.devices, **description}).encode()
        return bytes(self.data) + b"\x00\x06" + be(len(text), 4) + text


def page(address: int, content: bytes | None, block: str | None) -> bytes:
    """One page: zero when `content` is None; of the block before when `block` is None."""
    flags = (0x02 if content is None else 0x08) | (0x20 if block is None else 0)
    return be(address | flags, 8) + (counted(block) if block else b"") + (b"\x00" if content is None else content)


def plain_field(name: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "buffer", "size": size, **more}


def simple_stream() -> StreamBuilder:
    builder = StreamBuilder().configuration("x-ignore-shared")
    builder.ram_start({"ram": 1 << 20, "vga.vram": 8192}, with_address=True)
    return builder.ram_pages(page(0, b"v" * 4096, "vga.vram") + page(4096, None, None))
