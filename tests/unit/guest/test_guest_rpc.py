"""The guest RPC codec: whole, byte by byte, with rubbish around, and handed from a source to its clone."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.guest.rpc import MAX_FRAME_BYTES, MAX_PENDING, MAX_VALUE_BYTES, GuestRpc, Request, encode_text

OPENING = b"\x18\n?\n"


@pytest.fixture
def rpc() -> GuestRpc:
    codec = GuestRpc()
    assert codec.data_to_send() == OPENING
    return codec


REQUESTS = [
    (b"7 p info-get guestinfo.x\n", Request("7", b"info-get guestinfo.x")),
    (b"a-b.C p \n", Request("a-b.C", b"")),
    (b"7 b " + base64.b64encode(b"log \xff\\\n") + b"\n", Request("7", b"log \xff\\\n")),
    (b"7 b \n", Request("7", b"")),
    (b"7 p  two  spaces \n", Request("7", b" two  spaces ")),
]


@pytest.mark.parametrize(("wire", "request_"), REQUESTS)
def test_a_request_whole_and_byte_by_byte(wire: bytes, request_: Request) -> None:
    assert GuestRpc().receive(wire) == [request_]
    codec = GuestRpc()
    pieces = [codec.receive(wire[i : i + 1]) for i in range(len(wire))]
    assert [one for piece in pieces for one in piece] == [request_]
    assert GuestRpc().receive(b"\x18\n\n" + wire + b"trailing") == [request_]


@pytest.mark.parametrize(
    "line",
    [
        b"", b"7", b"7 p", b" p x", b"7 q x", b"7 b ?", b"7 b QQ", b"7 p \\", b"7 p \x07", b"7 p \xff",
        b"x" * 70 + b" p x", b"7 b QUJ\x18", b"\x00", b"{}",
    ],
)  # fmt: skip
def test_a_malformed_line_is_no_request_and_costs_nothing_later(rpc: GuestRpc, line: bytes) -> None:
    assert rpc.receive(line + b"\n") == []
    assert rpc.unanswered == b""
    assert rpc.receive(b"8 p good\n") == [Request("8", b"good")]


def test_a_malformed_line_with_an_id_is_refused_under_it(rpc: GuestRpc) -> None:
    rpc.receive(b"7 b ???\n")
    assert rpc.data_to_send() == b"7 0 p Malformed request\n"


def test_can_voids_half_a_line_left_by_a_killed_caller(rpc: GuestRpc) -> None:
    assert rpc.receive(b"1 p info-set guestinfo.x ab\x18\n2 p log ok\n") == [Request("2", b"log ok")]
    assert rpc.data_to_send() == b""


@pytest.mark.parametrize(
    ("ok", "value", "frame"),
    [
        (True, b"", b"7 1 p \n"),
        (True, b"plain ~ text", b"7 1 p plain ~ text\n"),
        (False, b"No value found", b"7 0 p No value found\n"),
        (True, b"a\nb", b"7 1 b YQpi\n"),
        (True, b"back\\slash", b"7 1 b YmFja1xzbGFzaA==\n"),
        (True, b"x" * (MAX_VALUE_BYTES + 1), b"7 0 p Answer too large\n"),
    ],
)
def test_replies(rpc: GuestRpc, ok: bool, value: bytes, frame: bytes) -> None:
    rpc.receive(b"7 p x\n")
    assert rpc.reply("7", ok, value) == frame


def test_a_reply_to_nothing_is_nothing(rpc: GuestRpc) -> None:
    assert rpc.reply("7", True) == b""
    rpc.receive(b"7 p x\n")
    assert rpc.reply("7", True) != b""
    assert rpc.reply("7", True) == b""


def test_a_repeated_request_is_not_carried_out_again(rpc: GuestRpc) -> None:
    assert len(rpc.receive(b"7 p log x\n7 p log x\n")) == 1
    first = rpc.reply("7", True, b"v")
    assert rpc.receive(b"7 p log x\n") == []
    assert rpc.data_to_send() == first


def test_an_id_used_for_something_else_is_a_new_request(rpc: GuestRpc) -> None:
    rpc.receive(b"7 p log x\n")
    rpc.reply("7", True)
    assert rpc.receive(b"7 p log y\n") == [Request("7", b"log y")]


def test_too_many_requests_are_refused_and_not_kept(rpc: GuestRpc) -> None:
    lines = b"".join(b"%d p x\n" % i for i in range(MAX_PENDING + 1))
    assert len(rpc.receive(lines)) == MAX_PENDING
    assert rpc.data_to_send() == b"%d 0 p Too many requests\n" % MAX_PENDING
    rpc.reply("0", True)
    assert len(rpc.receive(b"again p x\n")) == 1


def test_a_line_without_end_is_bounded_and_the_next_one_read(rpc: GuestRpc) -> None:
    for _ in range(8):
        assert rpc.receive(b"7 p " + b"x" * (MAX_FRAME_BYTES // 2)) == []
        assert len(rpc.unanswered) <= MAX_FRAME_BYTES
    assert rpc.data_to_send() == b"7 0 p Request too large\n"
    assert rpc.receive(b"tail\n8 p good\n") == [Request("8", b"good")]


def test_a_flood_does_not_grow_what_is_kept_or_owed(rpc: GuestRpc) -> None:
    for round_ in range(200):
        for request in rpc.receive(b"".join(b"%d.%d b !\n%d-%d p x\n" % (round_, i, round_, i) for i in range(50))):
            if round_ % 2:
                rpc.reply(request.id, True, b"y" * 5000)
    assert len(rpc.data_to_send()) < 300_000
    assert len(rpc.unanswered) < 600_000


def test_a_clone_answers_what_its_source_owed(rpc: GuestRpc) -> None:
    rpc.receive(b"1 p instantclone.freeze\n2 p info-g")
    clone = GuestRpc()
    assert clone.receive(rpc.unanswered) == [Request("1", b"instantclone.freeze")]
    assert clone.reply("1", True) == OPENING + b"1 1 p \n"
    assert clone.receive(b"et guestinfo.x\n") == [Request("2", b"info-get guestinfo.x")]
    # Woken by the new connection, the guest asks again under the same id.
    assert clone.receive(b"\x18\n1 p instantclone.freeze\n") == []
    assert clone.data_to_send() == b"1 1 p \n"


def test_an_answer_that_may_not_have_arrived_is_owed_by_a_clone(rpc: GuestRpc) -> None:
    rpc.receive(b"1 p info-get guestinfo.x\n")
    rpc.reply("1", True, b"v")
    assert rpc.unanswered == b"1 p info-get guestinfo.x\n"
    assert not rpc.is_delivered
    rpc.delivered()
    assert rpc.unanswered == b""
    assert rpc.is_delivered


def test_the_rest_of_a_too_long_line_is_void_in_a_clone_too(rpc: GuestRpc) -> None:
    rpc.receive(b"7 p " + b"x" * MAX_FRAME_BYTES)
    clone = GuestRpc()
    clone.receive(rpc.unanswered)
    assert clone.receive(b"8 p evil\n9 p good\n") == [Request("9", b"good")]


@given(st.binary(max_size=300))
def test_text_survives_the_wire(text: bytes) -> None:
    assert GuestRpc().receive(b"7 " + encode_text(text) + b"\n") == [Request("7", text)]


@given(st.lists(st.binary(max_size=40)), st.data())
def test_how_bytes_are_cut_makes_no_difference(texts: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(b"%d %s\n" % (i, encode_text(text)) for i, text in enumerate(texts))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    codec, got = GuestRpc(), []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        got += codec.receive(wire[start:end])
        clone = GuestRpc()  # one taken at any cut knows all that is unanswered
        assert [r.text for r in clone.receive(codec.unanswered)] == [r.text for r in got]
    assert [request.text for request in got] == texts


@given(st.lists(st.binary(max_size=2000), max_size=20))
def test_rubbish_never_raises_and_is_bounded(pieces: list[bytes]) -> None:
    codec = GuestRpc()
    for piece in pieces:
        for request in codec.receive(piece):
            codec.reply(request.id, True, request.text)
        assert len(codec.unanswered) <= 2 * MAX_FRAME_BYTES
