"""The wire of guest RPC as bytes in, requests out: no socket, no clock.

A request is a line ``<id> p <plain text>`` or ``<id> b <base64>``; its reply is ``<id> <1|0> p|b <text>``, 1 for
done and 0 for refused. Text is plain if it is printable ASCII without a backslash. A line with a CAN character in
it is void: either side sends CAN and a newline before anything else, so that half a line left behind by a killed
caller, or by the moment a clone was made, is not read as a whole one.

The guest sends a request again, with its id, when the port says end of file or when the host says ``?``, which it
does first on every connection: Linux's virtio ports hide a host that was away for an instant only. A repeated id is
answered again, from memory, and not carried out again. Everything that comes from the guest is bounded.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import OrderedDict
from dataclasses import dataclass

MAX_FRAME_BYTES = 96 * 1024
"""Of one line, its newline not counted: 64 KiB in base64, and room for the rest."""
MAX_PENDING = 64
MAX_PENDING_BYTES = 256 * 1024
"""Of unanswered requests together: a moment stores them."""
MAX_VALUE_BYTES = 64 * 1024
_MAX_REMEMBERED = 64
_MAX_REMEMBERED_BYTES = 256 * 1024
_MAX_REFUSALS_BYTES = 16 * 1024

_CAN = b"\x18"
_FRAME = re.compile(rb"(?P<id>[A-Za-z0-9.-]{1,64}) (?P<kind>[pb]) (?P<text>[ -~]*)")
_ID = re.compile(rb"(?P<id>[A-Za-z0-9.-]{1,64}) ")
_PLAIN = re.compile(rb"[ -\[\]-~]*")


@dataclass(frozen=True)
class Request:
    """One request of the guest. `id` goes back to `GuestRpc.reply`; `text` is any bytes, at most 96 KiB."""

    id: str
    text: bytes


def encode_text(text: bytes) -> bytes:
    """``p <text>`` or ``b <base64>``."""
    return b"p " + text if _PLAIN.fullmatch(text) else b"b " + base64.b64encode(text)


def _parse(line: bytes) -> Request:
    """Raises ValueError, with what to tell the guest."""
    if len(line) > MAX_FRAME_BYTES:
        raise ValueError("Request too large")
    match = _FRAME.fullmatch(line)
    if match is None or (match["kind"] == b"p" and b"\\" in line):
        raise ValueError("Malformed request")
    text = match["text"]
    if match["kind"] == b"b":
        try:
            text = base64.b64decode(text, validate=True)
        except binascii.Error as exc:
            raise ValueError("Malformed request") from exc
    return Request(match["id"].decode(), text)


class GuestRpc:
    """One VM's end of the wire, on the host. Feed it with `receive`, answer each request once with `reply`.

    What was not answered yet, or answered without knowing that the guest has read it, is `unanswered`: a clone's
    codec is given those bytes first and then owes the answers itself.
    """

    def __init__(self) -> None:
        self._partial = b""
        self._pending: dict[str, bytes] = {}
        self._answered: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()
        self._undelivered: dict[str, bytes] = {}
        self._out = _CAN + b"\n?\n"

    def receive(self, data: bytes) -> list[Request]:
        """The requests that are complete now, each id once. May leave refusals and repeated answers to send."""
        *lines, rest = (self._partial + data).split(b"\n")
        if len(rest) > MAX_FRAME_BYTES:
            self._refuse_line(rest, b"Request too large")
            rest = _CAN  # what is still to come of this line is void
        elif _CAN in rest:
            rest = _CAN
        self._partial = rest
        return [request for line in lines if (request := self._line(line)) is not None]

    def reply(self, request_id: str, ok: bool, value: bytes = b"") -> bytes:
        """The bytes to send for an answer, after all that was left to send before.

        An id that is not pending gives no answer. A value above 64 KiB becomes a refusal.
        """
        raw = self._pending.pop(request_id, None)
        if raw is None:
            return self.data_to_send()
        if len(value) > MAX_VALUE_BYTES:
            ok, value = False, b"Answer too large"
        frame = b"%s %d %s\n" % (request_id.encode(), ok, encode_text(value))
        self._remember(request_id, raw, frame)
        self._undelivered[request_id] = raw
        return self.data_to_send() + frame

    def data_to_send(self) -> bytes:
        """Takes out what else is to be sent: the opening, refusals, answers to repeated requests."""
        data, self._out = self._out, b""
        return data

    def delivered(self) -> None:
        """The guest's machine has taken everything that was sent: no clone needs to say it again."""
        self._undelivered.clear()

    @property
    def is_delivered(self) -> bool:
        """Whether no answer is known to be still on its way."""
        return not self._undelivered

    @property
    def pending_ids(self) -> frozenset[str]:
        return frozenset(self._pending)

    @property
    def unanswered(self) -> bytes:
        """What another codec needs to take over: bytes as the guest sent them, whole requests and half ones."""
        owed = {**self._undelivered, **self._pending}
        return b"".join(raw + b"\n" for raw in owed.values()) + self._partial

    def _line(self, line: bytes) -> Request | None:
        if _CAN in line or not line:
            return None
        try:
            request = _parse(line)
        except ValueError as exc:
            self._refuse_line(line, str(exc).encode())
            return None
        if self._is_repeated(request.id, line):
            return None
        if len(self._pending) >= MAX_PENDING or self._pending_bytes() + len(line) > MAX_PENDING_BYTES:
            self._refuse_line(line, b"Too many requests")
            return None
        self._pending[request.id] = line
        return request

    def _pending_bytes(self) -> int:
        return sum(map(len, self._pending.values()))

    def _is_repeated(self, request_id: str, line: bytes) -> bool:
        if request_id in self._pending:
            return True
        raw, frame = self._answered.get(request_id, (None, b""))
        if raw != line:
            return False
        if len(self._out) + len(frame) <= 2 * MAX_FRAME_BYTES:
            self._out += frame
            self._undelivered[request_id] = line
        return True

    def _refuse_line(self, line: bytes, why: bytes) -> None:
        match = _ID.match(line)
        if match is not None and len(self._out) < _MAX_REFUSALS_BYTES:
            self._out += b"%s 0 p %s\n" % (match["id"], why)

    def _remember(self, request_id: str, raw: bytes, frame: bytes) -> None:
        self._answered[request_id] = (raw, frame)
        self._answered.move_to_end(request_id)
        while len(self._answered) > _MAX_REMEMBERED or self._remembered_bytes() > _MAX_REMEMBERED_BYTES:
            forgotten, _ = self._answered.popitem(last=False)
            self._undelivered.pop(forgotten, None)

    def _remembered_bytes(self) -> int:
        return sum(len(raw) + len(frame) for raw, frame in self._answered.values())
