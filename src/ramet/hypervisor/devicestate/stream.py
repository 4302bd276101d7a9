"""Reads a QEMU migration stream (QEMU 7.2 to 10) that was saved with the capability x-ignore-shared.

    "QEVM", version 3
    configuration     machine type; subsections: capabilities, page bits, uuid
    section START     of `ram`: the list of RAM blocks           \\
    section PART/END  of `ram`: pages of the blocks not ignored   } each closed by a footer
    section FULL      one a device, payload as its fields say    /
    EOF, description  JSON: the devices in order, with the size of each field

Sans-IO and safe on hostile bytes: `parse` returns a value or raises DamagedError, in time linear in the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Final

from ramet.hypervisor.devicestate.description import Description, Device, damaged, read_description

MAX_STREAM_BYTES: Final = 1 << 30

_MAGIC: Final = b"QEVM"
_VERSION: Final = 3
_EOF: Final = 0x00
_SUBSECTION: Final = 0x05
_CONFIGURATION: Final = 0x07
_COMMAND: Final = 0x08
_FOOTER: Final = 0x7E

# The low bits of a page's address in a `ram` section (migration/ram.c).
_RAM_ZERO: Final = 0x02
_RAM_MEM_SIZE: Final = 0x04
_RAM_PAGE: Final = 0x08
_RAM_EOS: Final = 0x10
_RAM_CONTINUE: Final = 0x20
_RAM_MULTIFD_FLUSH: Final = 0x200
_RAM_FLAGS: Final = 0x3FF


@unique
class SectionKind(IntEnum):
    """QEMU's section types: a device is FULL; RAM comes as START, any number of PART, and END."""

    START = 1
    PART = 2
    END = 3
    FULL = 4


@dataclass(frozen=True, slots=True)
class Section:
    """One section. `offset` and `length` are its payload's place in the stream; `device` is set for FULL ones."""

    kind: SectionKind
    section_id: int
    name: str
    instance_id: int
    version: int
    offset: int
    length: int
    device: Device | None = None


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A parsed stream. `ram_blocks` are (name, bytes), ignored ones included."""

    machine_type: str
    capabilities: tuple[str, ...]
    page_size_bytes: int
    ram_blocks: tuple[tuple[str, int], ...]
    sections: tuple[Section, ...]
    size_bytes: int

    @property
    def devices(self) -> tuple[Section, ...]:
        """The sections of devices, in the order of the stream."""
        return tuple(section for section in self.sections if section.kind is SectionKind.FULL)


def parse(stream: bytes) -> DeviceState:
    """Read a whole stream. Raises DamagedError, and nothing else, when it is not one that QEMU wrote to its end."""
    if len(stream) > MAX_STREAM_BYTES:
        raise damaged(f"it is larger than {MAX_STREAM_BYTES >> 20} MiB")
    if stream[:4] != _MAGIC:
        raise damaged("it does not begin as QEMU's streams do")
    return _Reader(stream, read_description(stream)).read()


class _Cursor:
    """Bounded reads: past `end` is damage, never IndexError."""

    def __init__(self, data: bytes, end: int) -> None:
        self.data, self.at, self.end = data, 0, end

    def skip(self, count: int) -> int:
        """Step over `count` bytes; the offset where they began."""
        start = self.at
        if count > self.end - start:
            raise damaged("it ends too early")
        self.at = start + count
        return start

    def number(self, size: int) -> int:
        start = self.skip(size)
        return int.from_bytes(self.data[start : start + size], "big")

    def text(self, length: int) -> str:
        start = self.skip(length)
        try:
            return self.data[start : start + length].decode("ascii")
        except UnicodeDecodeError as exc:
            raise damaged("a name in it is not text") from exc

    def counted(self) -> str:
        return self.text(self.number(1))


class _Reader:
    def __init__(self, stream: bytes, description: Description) -> None:
        self._cursor = _Cursor(stream, description.start + 1)
        self._description = description
        self._waiting = iter(description.devices)
        self._machine_type = ""
        self._capabilities: tuple[str, ...] = ()
        self._ram_blocks: tuple[tuple[str, int], ...] = ()
        self._ram_id: int | None = None
        self._sections: list[Section] = []

    def read(self) -> DeviceState:
        cursor = self._cursor
        cursor.skip(4)
        if (version := cursor.number(4)) != _VERSION:
            raise damaged(f"its format is version {version}, not {_VERSION}")
        while (marker := cursor.number(1)) != _EOF:
            self._read_one(marker)
        if cursor.at != cursor.end or next(self._waiting, None) is not None:
            raise damaged("its sections are not those of its description")
        return DeviceState(
            self._machine_type,
            self._capabilities,
            self._description.page_size_bytes,
            self._ram_blocks,
            tuple(self._sections),
            len(cursor.data),
        )

    def _read_one(self, marker: int) -> None:
        if marker == _CONFIGURATION:
            self._configuration()
        elif marker == _COMMAND:
            self._cursor.skip(2)
            self._cursor.skip(self._cursor.number(2))
        elif marker in (SectionKind.START, SectionKind.FULL):
            self._opening_section(SectionKind(marker))
        elif marker in (SectionKind.PART, SectionKind.END):
            self._ram_section(SectionKind(marker))
        else:
            raise damaged(f"a section of the unknown type {marker:#x}")

    def _configuration(self) -> None:
        cursor = self._cursor
        if (length := cursor.number(4)) > 255:
            raise damaged("its machine type has no usable name")
        self._machine_type = cursor.text(length)
        while cursor.at < cursor.end and cursor.data[cursor.at] == _SUBSECTION:
            cursor.skip(1)
            self._configuration_subsection(cursor.counted())

    def _configuration_subsection(self, name: str) -> None:
        cursor = self._cursor
        cursor.skip(4)  # its version
        if name == "configuration/capabilities":
            if (count := cursor.number(4)) > 64:
                raise damaged("it lists too many capabilities")
            self._capabilities = tuple(cursor.counted() for _ in range(count))
        elif name == "configuration/target-page-bits":
            cursor.skip(4)
        elif name == "configuration/uuid":
            cursor.skip(16)
        else:
            raise damaged(f"it has an unknown {name!r}")

    def _opening_section(self, kind: SectionKind) -> None:
        cursor = self._cursor
        section_id, name = cursor.number(4), cursor.counted()
        instance_id, version = cursor.number(4), cursor.number(4)
        device, offset = None, cursor.at
        if kind is SectionKind.FULL:
            device = self._next_device(name, instance_id)
            cursor.skip(device.length)
        elif name != "ram":
            raise damaged(f"it has pages of {name!r}, which is not RAM")
        else:
            self._ram_id = section_id
            self._ram_setup()
        self._close(Section(kind, section_id, name, instance_id, version, offset, cursor.at - offset, device))

    def _next_device(self, name: str, instance_id: int) -> Device:
        device = next(self._waiting, None)
        if device is None or (device.name, device.instance_id) != (name, instance_id):
            raise damaged(f"its description does not have {name!r} where the stream has it")
        return device

    def _ram_setup(self) -> None:
        """Total size, then the blocks: name, length, and with x-ignore-shared the guest address."""
        cursor = self._cursor
        total = cursor.number(8)
        if total & _RAM_FLAGS != _RAM_MEM_SIZE:
            raise damaged("its RAM section does not begin with the RAM's size")
        left, blocks = total & ~_RAM_FLAGS, []
        while left > 0:
            name, length = cursor.counted(), cursor.number(8)
            cursor.skip(8 if "x-ignore-shared" in self._capabilities else 0)
            blocks.append((name, length))
            left -= length
        if left < 0 or any(length == 0 for _, length in blocks):
            raise damaged("its RAM blocks do not add up")
        self._ram_blocks = tuple(blocks)
        self._pages()

    def _ram_section(self, kind: SectionKind) -> None:
        cursor = self._cursor
        section_id = cursor.number(4)
        if section_id != self._ram_id:
            raise damaged(f"section {section_id} goes on without having begun")
        offset = cursor.at
        self._pages()
        self._close(Section(kind, section_id, "ram", 0, 0, offset, cursor.at - offset))

    def _pages(self) -> None:
        """Pages up to the end-of-section mark. Each costs at least eight bytes, so this ends."""
        cursor, page_size = self._cursor, self._description.page_size_bytes
        while True:
            flags = cursor.number(8) & _RAM_FLAGS & (page_size - 1)
            what = flags & ~_RAM_CONTINUE
            if what == _RAM_EOS:
                return
            if what == _RAM_MULTIFD_FLUSH:
                continue
            if what not in (_RAM_ZERO, _RAM_PAGE):
                raise damaged(f"a page of the unknown kind {flags:#x}")
            if not flags & _RAM_CONTINUE:
                cursor.skip(cursor.number(1))
            cursor.skip(1 if what == _RAM_ZERO else page_size)

    def _close(self, section: Section) -> None:
        if self._cursor.number(1) != _FOOTER or self._cursor.number(4) != section.section_id:
            raise damaged(f"section {section.name!r} does not end where its description says")
        self._sections.append(section)
