"""Gives the network cards in a saved device state other addresses, so that a clone's cards are its own.

Where a card keeps its address differs by model (QEMU 7.2 to 10):

    virtio-net  in an opaque section, twice: the config space, then the card's own copy (before any receive filter)
    e1000e      receive address 0 of the register file (little-endian inside registers that the stream has big-endian),
                the first three words of the EEPROM, whose 64 words add up to 0xBABA, and the permanent address
    vmxnet3     nowhere: QEMU does not save it, the clone's comes from its command line

The PCI Express cards, e1000e and vmxnet3, have a serial number made of the address among their PCI capabilities, too.
It is read-only, so QEMU refuses a state whose serial number is not the one that the clone's command line makes.

A guest may have set another address by itself; such a place is left as it is, as a real card would keep it. A reset of
the card (the guest's driver reloaded) brings out the clone's own one, which its command line names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ramet.errors import UsageError
from ramet.hypervisor.devicestate.description import damaged
from ramet.hypervisor.devicestate.stream import DeviceState, Section, parse

NIC_MODELS = frozenset({"virtio-net", "e1000e", "vmxnet3"})

_E1000E_RECEIVE_ADDRESS = 0x5400 >> 2  # index of RAL0 in the register file; RAH0 follows
_E1000E_CHECKSUM_WORD = 0x3F
_CONFIG_BYTES = 4096
_VERSION_BYTES = 4
_FIRST_CAPABILITY = 0x100
_SERIAL_NUMBER = 0x0003  # PCI_EXT_CAP_ID_DSN
# Where in the 8 bytes of the serial number each byte of the address stands.
_SERIAL_ORDER = {"e1000e": (7, 6, 5, 2, 1, 0), "vmxnet3": (4, 5, 6, 1, 2, 3)}


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes to write at an offset of the stream."""

    offset: int
    data: bytes


def replace_macs(stream: bytes, replacements: Mapping[str, str]) -> bytes:
    """The stream with other MAC addresses (old -> new), of the same length. See `mac_patches`."""
    patched = bytearray(stream)
    for patch in mac_patches(stream, replacements):
        patched[patch.offset : patch.offset + len(patch.data)] = patch.data
    return bytes(patched)


def mac_patches(
    stream: bytes, replacements: Mapping[str, str], *, state: DeviceState | None = None
) -> tuple[Patch, ...]:
    """What to write where, so that the card with an old address has the new one: `replacements` is old -> new.

    Addresses may be exchanged among cards. `state` saves the parsing when many clones are made of one stream.
    Raises DamagedError when the stream is broken or has too few cards, UsageError when an address is not one.
    """
    state = state or parse(stream)
    wanted = {_address(old): _address(new) for old, new in replacements.items()}
    chosen = _assign(stream, state, wanted)
    return tuple(
        patch for old, section in chosen.items() for patch in _section_patches(stream, section, old, wanted[old])
    )


def _address(text: str) -> bytes:
    parts = text.split(":")
    if len(parts) != 6 or any(len(part) != 2 for part in parts):
        raise UsageError(f"{text!r} is not a MAC address.")
    try:
        return bytes.fromhex("".join(parts))
    except ValueError as exc:
        raise UsageError(f"{text!r} is not a MAC address.") from exc


def _assign(stream: bytes, state: DeviceState, addresses: Collection[bytes]) -> dict[bytes, Section]:
    """Which card has which address. Two may have the same (in a bond), so the best match is taken first."""
    free = [section for section in state.devices if section.device and section.device.vmsd_name in NIC_MODELS]
    if len(addresses) > len(free):
        raise damaged(f"it has {len(free)} network cards, not {len(addresses)}")
    matches = [
        (sum(1 for _ in _section_patches(stream, section, address, address)), -index, address, section)
        for address in addresses
        for index, section in enumerate(free)
    ]
    chosen: dict[bytes, Section] = {}
    for count, _, address, section in sorted(matches, key=lambda match: match[:3], reverse=True):
        if count and address not in chosen and section in free:
            chosen[address] = section
            free.remove(section)
    return chosen


def _section_patches(stream: bytes, section: Section, old: bytes, new: bytes) -> Iterator[Patch]:
    model = section.device.vmsd_name if section.device else ""
    if model == "virtio-net":
        yield from _virtio_patches(stream, section, old, new)
    elif model == "e1000e":
        yield from _e1000e_patches(stream, section, old, new)
    if model in _SERIAL_ORDER:
        yield from _serial_patches(stream, section, old, new)


def _virtio_patches(stream: bytes, section: Section, old: bytes, new: bytes) -> Iterator[Patch]:
    at, end = section.offset, section.offset + section.length
    for _ in range(2):
        at = stream.find(old, at, end)
        if at < 0:
            return
        yield Patch(at, new)
        at += len(old)


def _e1000e_patches(stream: bytes, section: Section, old: bytes, new: bytes) -> Iterator[Patch]:
    registers = _span(section, "core.mac", 4, _E1000E_RECEIVE_ADDRESS + 2) + 4 * _E1000E_RECEIVE_ADDRESS
    if stream[registers : registers + 4] == old[3::-1] and stream[registers + 6 : registers + 8] == old[:3:-1]:
        yield Patch(registers, new[3::-1])
        yield Patch(registers + 6, new[:3:-1])  # RAH's upper half holds "address valid"
    permanent = _span(section, "core.permanent_mac", 1, 6)
    if stream[permanent : permanent + 6] == old:
        yield Patch(permanent, new)
    eeprom = _span(section, "core.eeprom", 2, _E1000E_CHECKSUM_WORD + 1)
    if stream[eeprom : eeprom + 6] == _swapped(old):
        checksum = eeprom + 2 * _E1000E_CHECKSUM_WORD
        value = int.from_bytes(stream[checksum : checksum + 2], "big") + _word_sum(old) - _word_sum(new)
        yield Patch(eeprom, _swapped(new))
        yield Patch(checksum, (value & 0xFFFF).to_bytes(2, "big"))


def _serial_patches(stream: bytes, section: Section, old: bytes, new: bytes) -> Iterator[Patch]:
    at, order = _serial_number(stream, section), _SERIAL_ORDER[section.device.vmsd_name if section.device else ""]
    if at is None or any(stream[at + place] != byte for place, byte in zip(order, old, strict=True)):
        return
    serial = bytearray(stream[at : at + 8])
    for place, byte in zip(order, new, strict=True):
        serial[place] = byte
    yield Patch(at, bytes(serial))


def _serial_number(stream: bytes, section: Section) -> int | None:
    """Offset in the stream of the 8 bytes of a PCI Express device's serial number; None when it has none."""
    fields = section.device.fields if section.device else ()
    parent = next((field for field in fields if field.name.startswith("parent_obj")), None)
    if parent is None or parent.length < _VERSION_BYTES + _CONFIG_BYTES:  # not Express: no extended capabilities
        return None
    start = section.offset + parent.offset + _VERSION_BYTES
    config = stream[start : start + _CONFIG_BYTES]
    at, seen = _FIRST_CAPABILITY, set()
    while _FIRST_CAPABILITY <= at <= _CONFIG_BYTES - 12 and at not in seen:
        seen.add(at)
        header = int.from_bytes(config[at : at + 4], "little")
        if header & 0xFFFF == _SERIAL_NUMBER:
            return start + at + 4
        at = header >> 20
    return None


def _span(section: Section, name: str, size: int, count: int) -> int:
    """Offset in the stream of a field that must have at least `count` elements of `size` bytes."""
    field = section.device.find(name) if section.device else None
    if field is None or field.size != size or field.count < count:
        raise damaged(f"{section.name!r} has no usable {name!r}")
    return section.offset + field.offset


def _swapped(address: bytes) -> bytes:
    """The address as three 16-bit words, first byte low, written big-endian."""
    return bytes(address[i ^ 1] for i in range(6))


def _word_sum(address: bytes) -> int:
    return sum(int.from_bytes(address[i : i + 2], "little") for i in (0, 2, 4))
