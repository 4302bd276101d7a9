"""Reading device state: what QEMU writes is understood, and whatever else there is raises DamagedError only."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError
from ramet.hypervisor.devicestate import SectionKind, parse
from tests.unit.hypervisor.devicestate_kit import (
    REAL_STREAM,
    StreamBuilder,
    be,
    counted,
    page,
    plain_field,
    simple_stream,
)


def test_a_real_stream_is_read_whole() -> None:
    state = parse(REAL_STREAM)
    assert state.machine_type == "pc-q35-7.2"
    assert state.capabilities == ("x-ignore-shared",)
    assert state.page_size_bytes == 4096
    assert state.ram_blocks[0] == ("ram", 64 << 20)
    assert [s.kind for s in state.sections[:3]] == [SectionKind.START, SectionKind.PART, SectionKind.END]
    assert {s.name for s in state.devices} >= {"0000:00:10.0:00.0/virtio-net", "cpu", "globalstate", "timer"}
    assert state.size_bytes == len(REAL_STREAM)


def test_sections_of_a_real_stream_lie_where_they_are_said_to() -> None:
    """Header and footer stand right before and after every payload, and nothing stands between two sections."""
    for section in parse(REAL_STREAM).sections:
        end = section.offset + section.length
        assert REAL_STREAM[end : end + 5] == b"\x7e" + be(section.section_id, 4)
        if section.kind is SectionKind.FULL:
            head = b"\x04" + be(section.section_id, 4) + counted(section.name)
            head += be(section.instance_id, 4) + be(section.version, 4)
            assert REAL_STREAM[: section.offset].endswith(head)


def test_what_another_version_may_write_is_read() -> None:
    """Page bits, a UUID, commands, pages without x-ignore-shared's addresses, a multifd flush, early devices."""
    builder = StreamBuilder(page_size=1024).configuration(page_bits=10, uuid=b"u" * 16).command(0x0B)
    builder.device("early", b"abc", {"vmsd_name": "early", "fields": [plain_field("a", 3)]})
    builder.ram_start({"ram": 4096}, with_address=False).command(2, b"payload")
    builder.ram_pages(be(0x200, 8) + page(0, b"x" * 1024, "ram"), kind=3)
    state = parse(builder.build())
    assert [s.name for s in state.devices] == ["early"]
    assert state.ram_blocks == (("ram", 4096),)


def test_subsections_and_arrays_count_into_a_section() -> None:
    subsection = {"vmsd_name": "dev/more", "version": 1, "fields": [plain_field("c", 2)]}
    fields = [plain_field("a", 2, array_len=3), plain_field("b", 1)]
    payload = b"aaaaaab" + b"\x05" + counted("dev/more") + be(1, 4) + b"cc"
    stream = simple_stream().device("dev", payload, {"vmsd_name": "dev", "fields": fields, "subsections": [subsection]})
    section = parse(stream.build()).devices[0]
    assert section.length == len(payload)
    assert section.device is not None
    field = section.device.find("b")
    assert field is not None
    assert field.offset == 6
    assert section.device.find("c") is None


def test_a_section_saved_by_hand_has_no_description_of_its_own() -> None:
    """User-mode networking: one opaque field, and no vmstate to name."""
    stream = simple_stream().device("slirp", b"123", {"fields": [plain_field("data", 3)]}).build()
    section = parse(stream).devices[0]
    assert section.device is not None
    assert (section.device.vmsd_name, section.length) == ("", 3)


def test_a_length_that_looks_like_a_marker_does_not_mislead() -> None:
    """0x0006xxxx as the description's length holds the marker's own bytes."""
    builder = simple_stream()
    short = len(builder.build(padding=""))
    stream = builder.build(padding=" " * (0x60_020 - (short - len(builder.data) - 6)))
    assert stream[len(builder.data) + 2 :][:4] == be(0x60_020, 4)
    assert parse(stream).page_size_bytes == 4096


def test_pages_that_imitate_a_stream_do_not_mislead() -> None:
    """A guest chooses what its video memory holds: the end of a section and a stream's end, here."""
    forged = b"\x7e" + be(2, 4) + b"\x00\x06" + be(2, 4) + b"{}"
    content = forged + bytes(4096 - len(forged))
    builder = simple_stream().ram_pages(page(0, content, "vga.vram"), kind=3)
    state = parse(builder.build())
    assert [s.kind for s in state.sections] == [SectionKind.START, SectionKind.PART, SectionKind.END]


@pytest.mark.parametrize(
    ("what", "stream"),
    [
        ("empty", b""),
        ("no magic", b"QEMU" + REAL_STREAM[4:]),
        ("another version", REAL_STREAM[:4] + be(2, 4) + REAL_STREAM[8:]),
        ("cut", REAL_STREAM[:-1]),
        ("cut in the middle", REAL_STREAM[: len(REAL_STREAM) // 2]),
        ("trailing bytes", REAL_STREAM + b"\x00"),
        ("no sections", StreamBuilder().build(page_size=3)),
        ("page size", StreamBuilder().build(page_size=0)),
        ("devices missing", StreamBuilder().build(devices=[{"name": "a"}])),
        ("devices no list", StreamBuilder().build(devices={})),
        (
            "negative size",
            simple_stream().device("d", b"", {"vmsd_name": "d", "fields": [plain_field("a", -1)]}).build(),
        ),
        (
            "huge size",
            simple_stream().device("d", b"", {"vmsd_name": "d", "fields": [plain_field("a", 1 << 62)]}).build(),
        ),
        (
            "true size",
            simple_stream().device("d", b"a", {"vmsd_name": "d", "fields": [plain_field("a", True)]}).build(),
        ),
        (
            "too short a payload",
            simple_stream().device("d", b"", {"vmsd_name": "d", "fields": [plain_field("a", 9)]}).build(),
        ),
        (
            "a device too many",
            simple_stream().build(devices=[{"name": "x", "instance_id": 0, "vmsd_name": "x", "fields": []}]),
        ),
        ("pages without a start", StreamBuilder().configuration().ram_pages(b"").build()),
        ("unknown page", simple_stream().ram_pages(be(0x40, 8)).build()),
        ("RAM that does not add up", StreamBuilder().configuration().ram_start({"ram": 0}, with_address=True).build()),
    ],
)
def test_damage_is_told_as_damage(what: str, stream: bytes) -> None:
    with pytest.raises(DamagedError):
        parse(stream)


def test_a_description_nested_without_end_is_damage() -> None:
    text = b'{"page_size": 4096, "devices": ' + b"[" * 100_000
    with pytest.raises(DamagedError):
        parse(b"QEVM" + be(3, 4) + b"\x00\x06" + be(len(text), 4) + text)


def parses_or_is_damaged(stream: bytes) -> None:
    try:
        state = parse(stream)
    except DamagedError:
        return
    assert all(0 <= s.offset <= s.offset + s.length <= len(stream) for s in state.sections)


@given(st.binary(max_size=2000))
def test_random_bytes_are_damage(data: bytes) -> None:
    parses_or_is_damaged(b"QEVM\x00\x00\x00\x03" + data)


@given(st.binary(max_size=300), st.recursive(st.none() | st.integers() | st.text(max_size=8), st.lists))
def test_random_descriptions_are_damage(data: bytes, devices: object) -> None:
    text = json.dumps({"page_size": 4096, "devices": devices}).encode()
    parses_or_is_damaged(b"QEVM\x00\x00\x00\x03" + data + b"\x00\x06" + be(len(text), 4) + text)


INTERESTING = len(REAL_STREAM) - 40_000
"""From here on there are few long opaque fields: more of the mutations hit what the parser looks at."""

positions = st.integers(0, 2000) | st.integers(INTERESTING, len(REAL_STREAM) - 1) | st.integers(0, len(REAL_STREAM) - 1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 3))
def test_mutated_real_streams_are_read_or_are_damage(changes: list[tuple[int, int]], cut: int) -> None:
    stream = bytearray(REAL_STREAM)
    for at, value in changes:
        stream[at] = value
    if cut == 3:
        del stream[changes[0][0]]
    parses_or_is_damaged(bytes(stream))
