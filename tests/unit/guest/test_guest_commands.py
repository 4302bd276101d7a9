"""The verbs of guest RPC."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import BusyError
from ramet.guest.commands import MAX_GUEST_KEYS, answer, answer_inherited


class Host:
    def __init__(self, **config: str) -> None:
        self.values = {key.replace("_", "."): value for key, value in config.items()}
        self.lines: list[str] = []
        self.frozen = 0
        self.busy = False

    def config(self) -> Mapping[str, str]:
        return self.values

    async def store(self, key: str, value: str) -> None:
        self.values[key] = value

    def log(self, text: str) -> None:
        self.lines.append(text)

    async def freeze(self) -> None:
        if self.busy:
            raise BusyError("Another operation holds the VM.")
        self.frozen += 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"info-get guestinfo.name", (True, b"web")),
        (b"info-get GuestInfo.NAME", (True, b"web")),
        (b"info-get  guestinfo.name \n", (True, b"web")),
        (b"info-get guestinfo.other", (False, b"No value found")),
        (b"info-get secret.key", (False, b"No value found")),
        (b"info-get", (False, b"No value found")),
        (b"info-set secret.key x", (False, b"Permission denied")),
        (b"info-set guestinfo. x", (False, b"Permission denied")),
        (b"info-set", (False, b"Permission denied")),
        (b"tools.capability.hgfs_server toolbox 1", (True, b"")),
        (b"frobnicate", (False, b"Unknown command")),
        (b"\xff\xfe", (False, b"Unknown command")),
        (b"", (False, b"Unknown command")),
    ],
)
async def test_answers(text: bytes, expected: tuple[bool, bytes]) -> None:
    assert await answer(text, Host(guestinfo_name="web", secret_key="s")) == expected


async def test_what_is_set_is_read_again_whatever_the_case() -> None:
    host = Host()
    assert await answer(b"info-set GuestInfo.Ready  yes, ready", host) == (True, b"")
    assert await answer(b"info-get guestinfo.ready", host) == (True, b" yes, ready")


async def test_the_number_of_keys_is_bounded() -> None:
    host = Host(**{f"guestinfo_{i}": "x" for i in range(MAX_GUEST_KEYS)})
    assert (await answer(b"info-set guestinfo.more x", host))[0] is False
    assert (await answer(b"info-set guestinfo.1 x", host))[0] is True


async def test_the_size_of_a_value_and_of_all_is_bounded() -> None:
    host = Host()
    assert (await answer(b"info-set guestinfo.a " + b"x" * 65537, host))[0] is False
    for i in range(40):
        await answer(b"info-set guestinfo.%d " % i + b"x" * 65536, host)
    assert sum(map(len, host.values.values())) <= 1 << 20


async def test_a_line_for_the_log_has_no_control_characters() -> None:
    host = Host()
    assert await answer(b"log hello\x1b[31m\tworld", host) == (True, b"")
    assert host.lines == ["hello?[31m\tworld"]


async def test_freeze_answers_when_the_vm_goes_on() -> None:
    host = Host()
    assert await answer(b"instantclone.freeze", host) == (True, b"")
    assert host.frozen == 1


async def test_a_refused_freeze_says_why() -> None:
    host = Host()
    host.busy = True
    assert await answer(b"instantclone.freeze", host) == (False, b"Another operation holds the VM.")


async def test_in_a_clone_the_inherited_freeze_is_over() -> None:
    host = Host(guestinfo_name="web")
    assert await answer_inherited(b"instantclone.freeze", host) == (True, b"")
    assert host.frozen == 0
    assert await answer_inherited(b"info-get guestinfo.name", host) == (True, b"web")


@given(st.binary(max_size=200))
async def test_no_request_raises(text: bytes) -> None:
    done, value = await answer(text, Host())
    assert isinstance(done, bool)
    assert isinstance(value, bytes)
