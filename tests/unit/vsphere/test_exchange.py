"""A whole HTTP exchange: how much of a body is taken, and from whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ramet.vsphere.wire.exchange import MAX_ANONYMOUS_BYTES, MAX_BODY_BYTES, Request, Response, asgi


class FakeWorld:
    """With one session, whose secret is 'known'."""

    def part(self, kind: type[Any]) -> Any:
        return SimpleNamespace(find=lambda secret: secret if secret == "known" else None)


async def ask(size: int, *headers: tuple[bytes, bytes]) -> tuple[int, int]:
    """The status, and how much of the body the other side took."""
    taken = 0
    sent: list[Any] = []

    async def respond(request: Request) -> Response:
        assert len(request.body) == size
        return Response()

    async def receive() -> Any:
        nonlocal taken
        piece = min(size - taken, 64 << 10)
        taken += piece
        return {"type": "http.request", "body": bytes(piece), "more_body": taken < size}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api", "headers": headers}
    await asgi(respond, FakeWorld())(scope, receive, send)  # type: ignore[arg-type]
    return sent[0]["status"], taken


HEADER = (b"vmware-api-session-id", b"known")


@pytest.mark.parametrize("who", [(), ((b"vmware-api-session-id", b"made up"),)], ids=["nobody", "a made up secret"])
async def test_a_stranger_says_little(who: tuple[tuple[bytes, bytes], ...]) -> None:
    assert await ask(MAX_ANONYMOUS_BYTES, *who) == (200, MAX_ANONYMOUS_BYTES)
    status, taken = await ask(MAX_BODY_BYTES, *who)
    assert status == 413
    assert taken <= MAX_ANONYMOUS_BYTES + (64 << 10)


@pytest.mark.parametrize(
    "who", [HEADER, (b"cookie", b'vmware_soap_session="known"'), (b"cookie", b"vmware-api-session-id=known")]
)
async def test_who_has_a_session_may_say_much_but_not_all(who: tuple[bytes, bytes]) -> None:
    assert await ask(MAX_BODY_BYTES, who) == (200, MAX_BODY_BYTES)
    assert (await ask(MAX_BODY_BYTES + 1, who))[0] == 413
