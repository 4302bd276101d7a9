"""New addresses for a clone's cards: in every place that a card keeps its own, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError, UsageError
from ramet.hypervisor.devicestate import Section, mac_patches, parse, replace_macs
from tests.unit.hypervisor.devicestate_kit import REAL_MACS, REAL_STREAM, plain_field, simple_stream

NEW = "52:54:00:cc:dd:ee"
STATE = parse(REAL_STREAM)


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def section_of(name: str) -> Section:
    return next(s for s in STATE.devices if s.name == name)


VIRTIO = section_of("0000:00:10.0:00.0/virtio-net")
SECOND_VIRTIO = section_of("0000:00:03.0/virtio-net")
E1000E = section_of("0000:00:11.0:00.0/e1000e")
VMXNET3 = section_of("0000:00:12.0:00.0/vmxnet3")


def changed_offsets(before: bytes, after: bytes) -> list[int]:
    assert len(before) == len(after)
    return [at for at, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]


def register(stream: bytes, index: int) -> bytes:
    assert E1000E.device is not None
    field = E1000E.device.find("core.mac")
    assert field is not None
    at = E1000E.offset + field.offset + 4 * index
    return stream[at : at + 4]


def eeprom(stream: bytes) -> list[int]:
    assert E1000E.device is not None
    field = E1000E.device.find("core.eeprom")
    assert field is not None
    at = E1000E.offset + field.offset
    return [int.from_bytes(stream[at + 2 * i : at + 2 * i + 2], "big") for i in range(64)]


def test_only_the_right_virtio_card_changes() -> None:
    after = replace_macs(REAL_STREAM, {REAL_MACS[1]: NEW})
    changed = changed_offsets(REAL_STREAM, after)
    assert changed
    assert all(VIRTIO.offset <= at < VIRTIO.offset + VIRTIO.length for at in changed)
    assert raw(REAL_MACS[1]) not in after
    assert raw(REAL_MACS[4]) in after


def test_e1000e_has_the_address_in_registers_eeprom_and_permanent_field() -> None:
    after = replace_macs(REAL_STREAM, {REAL_MACS[2]: NEW})
    # As the hardware has it: RAL0 = bytes 3..0 and RAH0 = "valid", then bytes 5 and 4, of a little-endian address.
    assert register(after, 0x1500) == bytes([0xCC, 0x00, 0x54, 0x52])
    assert register(after, 0x1501) == bytes([0x80, 0x00, 0xEE, 0xDD])
    assert eeprom(after)[:3] == [0x5452, 0xCC00, 0xEEDD]
    assert sum(eeprom(REAL_STREAM)) & 0xFFFF == sum(eeprom(after)) & 0xFFFF == 0xBABA
    assert E1000E.device is not None
    field = E1000E.device.find("core.permanent_mac")
    assert field is not None
    at = E1000E.offset + field.offset
    assert after[at : at + 6] == raw(NEW)
    changed = changed_offsets(REAL_STREAM, after)
    assert all(E1000E.offset <= at < E1000E.offset + E1000E.length for at in changed)


def serial_number(stream: bytes, section: Section, capability: int) -> str:
    """Of a PCI Express device: behind its version and the header of the capability."""
    assert section.device is not None
    at = section.offset + 4 + capability
    assert stream[at : at + 4] == bytes.fromhex("03000100")
    return stream[at + 4 : at + 12].hex()


def test_express_cards_get_the_serial_number_that_their_new_address_makes() -> None:
    """As `e1000e_gen_dsn` and `vmxnet3_device_serial_num` make it; QEMU refuses a state with another."""
    assert serial_number(REAL_STREAM, E1000E, 0x140) == "02bbaaffff005452"
    assert serial_number(REAL_STREAM, VMXNET3, 0x100) == "feaabb03525400ff"
    after = replace_macs(REAL_STREAM, {REAL_MACS[2]: NEW, REAL_MACS[3]: "52:54:00:11:22:33"})
    assert serial_number(after, E1000E, 0x140) == "eeddccffff005452"
    assert serial_number(after, VMXNET3, 0x100) == "fe112233525400ff"


def test_of_a_vmxnet3_only_the_serial_number_is_in_the_stream() -> None:
    """QEMU does not save its address: the clone's card has the one of its command line already."""
    assert raw(REAL_MACS[3]) not in REAL_STREAM
    after = replace_macs(REAL_STREAM, {REAL_MACS[3]: NEW})
    serial = VMXNET3.offset + 4 + 0x104
    assert changed_offsets(REAL_STREAM, after) == [serial + 1, serial + 2, serial + 3]


def test_all_cards_at_once() -> None:
    wanted = {mac: f"52:54:00:00:00:0{number}" for number, mac in REAL_MACS.items()}
    after = replace_macs(REAL_STREAM, wanted)
    for old, new in wanted.items():
        assert raw(old) not in after
        assert (raw(new) in after) == (old != REAL_MACS[3])


def test_addresses_can_be_exchanged() -> None:
    one, other = REAL_MACS[1], REAL_MACS[4]
    after = replace_macs(REAL_STREAM, {one: other, other: one})
    assert raw(other) in after[VIRTIO.offset : VIRTIO.offset + VIRTIO.length]
    assert raw(one) in after[SECOND_VIRTIO.offset : SECOND_VIRTIO.offset + SECOND_VIRTIO.length]
    assert replace_macs(after, {one: other, other: one}) == REAL_STREAM


def test_an_address_the_guest_chose_stays() -> None:
    """Nothing in the stream has the card's own address then; its reset brings out the clone's."""
    chosen = replace_macs(REAL_STREAM, {REAL_MACS[1]: "02:00:00:00:00:99"})
    assert replace_macs(chosen, {REAL_MACS[1]: NEW}) == chosen


def test_a_receive_filter_is_left_alone() -> None:
    """virtio-net: config space, own copy, and only later the filter, where a guest may have put the address too."""
    old = raw(REAL_MACS[1])
    payload = b"config" + old + b"own" + old + b"filter" + old
    builder = simple_stream().device(
        "n/virtio-net", payload, {"vmsd_name": "virtio-net", "fields": [plain_field("v", 33)]}
    )
    after = replace_macs(builder.build(), {REAL_MACS[1]: NEW})
    assert b"config" + raw(NEW) + b"own" + raw(NEW) + b"filter" + old in after


def test_the_same_bytes_elsewhere_are_left_alone() -> None:
    """A disk's cache, video memory, another device: a MAC address by chance, or on purpose."""
    old = raw(REAL_MACS[1])
    builder = simple_stream().device("other", old, {"vmsd_name": "other", "fields": [plain_field("data", 6)]})
    builder.device("n/virtio-net", old, {"vmsd_name": "virtio-net", "fields": [plain_field("v", 6)]})
    stream = builder.build()
    patches = mac_patches(stream, {REAL_MACS[1]: NEW})
    assert [(p.offset, p.data) for p in patches] == [(stream.rindex(old), raw(NEW))]


def test_of_two_cards_with_one_address_the_better_match_is_its_owner() -> None:
    """A bond gives both the first one's address, but the second's config space still has its own."""
    first, second = raw(REAL_MACS[1]), raw(REAL_MACS[4])
    builder = simple_stream()
    for name, payload in (("b", second + first), ("a", first + first)):
        builder.device(name, payload, {"vmsd_name": "virtio-net", "fields": [plain_field("v", 12)]})
    after = replace_macs(builder.build(), {REAL_MACS[1]: NEW, REAL_MACS[4]: "52:54:00:00:00:04"})
    assert raw(NEW) * 2 in after
    assert raw("52:54:00:00:00:04") + first in after


def test_a_checksum_that_was_wrong_stays_as_wrong() -> None:
    stream = bytearray(REAL_STREAM)
    assert E1000E.device is not None
    field = E1000E.device.find("core.eeprom")
    assert field is not None
    stream[E1000E.offset + field.offset + 2 * 0x3F] ^= 0xFF
    before, after = bytes(stream), replace_macs(bytes(stream), {REAL_MACS[2]: NEW})
    assert sum(eeprom(before)) & 0xFFFF == sum(eeprom(after)) & 0xFFFF != 0xBABA


def test_too_few_cards_are_damage() -> None:
    with pytest.raises(DamagedError, match="4 network cards, not 5"):
        replace_macs(REAL_STREAM, {f"52:54:00:00:00:0{i}": NEW for i in range(5)})


def test_an_e1000e_without_its_fields_is_damage() -> None:
    builder = simple_stream().device("e", b"123", {"vmsd_name": "e1000e", "fields": [plain_field("core.mac", 3)]})
    with pytest.raises(DamagedError, match=r"core\.mac"):
        replace_macs(builder.build(), {REAL_MACS[2]: NEW})


@pytest.mark.parametrize("mac", ["", "52:54:00:aa:bb", "52:54:00:aa:bb:0g", "525400aabb01", "52:54:00:aa:bb:1"])
def test_what_is_no_address_is_refused(mac: str) -> None:
    with pytest.raises(UsageError):
        replace_macs(REAL_STREAM, {REAL_MACS[1]: mac})


new_macs = st.binary(min_size=3, max_size=3).map(lambda tail: "02:00:" + ":".join(f"{b:02x}" for b in (9, *tail)))


@settings(max_examples=40, deadline=None)
@given(st.lists(new_macs, min_size=4, max_size=4, unique=True))
def test_there_and_back_is_nothing(macs: list[str]) -> None:
    there = dict(zip(REAL_MACS.values(), macs, strict=True))
    after = replace_macs(REAL_STREAM, there)
    assert len(after) == len(REAL_STREAM)
    assert parse(after).devices == STATE.devices
    assert replace_macs(after, {new: old for old, new in there.items()}) == REAL_STREAM


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(REAL_STREAM) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_streams_are_patched_or_are_damage(changes: list[tuple[int, int]]) -> None:
    stream = bytearray(REAL_STREAM)
    for at, value in changes:
        stream[at] = value
    try:
        after = replace_macs(bytes(stream), dict.fromkeys(REAL_MACS.values(), NEW))
    except DamagedError:
        return
    assert len(after) == len(stream)
