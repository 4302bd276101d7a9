"""What the guest may ask for over guest RPC: the verbs of the original's, as far as guests rely on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from ramet.errors import RametError
from ramet.model.machine import check_extra_config

MAX_GUEST_KEYS = 512
MAX_GUEST_BYTES = 1 << 20
"""Of all guestinfo.* keys and values of a VM together, once the guest writes to them."""
_MAX_LOG_BYTES = 4096
_PREFIX = "guestinfo."
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
# What other guest tools announce about themselves; nothing follows from it here.
_HARMLESS = re.compile(r"^(tools\.(capability|set|os)\.|vmx\.capability\.|capabilities_register\b)", re.IGNORECASE)

Answer = tuple[bool, bytes]
"""(Done, value) or (refused, reason), as `ramet.guest.rpc.GuestRpc.reply` takes them."""


class GuestHost(Protocol):
    """What a VM's host offers to its guest. A `RametError` from these goes to the guest as the reason."""

    def config(self) -> Mapping[str, str]:
        """The VM's extra configuration, keys in lower case."""

    async def store(self, key: str, value: str) -> None:
        """Keep one guestinfo.* key (lower case, checked)."""

    def log(self, text: str) -> None:
        """One line of the guest's for the VM's log, bounded and without control characters."""

    async def freeze(self) -> None:
        """Hold the VM at this instruction; returns when it goes on, in the source or (`inherited`) in a clone."""


async def answer(text: bytes, host: GuestHost) -> Answer:
    """Carry out one request. Never raises for anything a guest may send."""
    try:
        request = text.decode().strip("\0\n ")
    except UnicodeDecodeError:
        return False, b"Unknown command"
    verb, _, rest = request.partition(" ")
    try:
        return await _dispatch(verb, rest, host)
    except RametError as error:
        return False, error.message.encode()


async def answer_inherited(text: bytes, host: GuestHost) -> Answer:
    """Like `answer`, for requests that a clone has from its source: there the freeze is over, so it is done."""
    if text.strip(b"\0\n ") == b"instantclone.freeze":
        return True, b""
    return await answer(text, host)


async def _dispatch(verb: str, rest: str, host: GuestHost) -> Answer:
    match verb:
        case "info-get":
            return _info_get(rest.strip(), host)
        case "info-set":
            return await _info_set(rest, host)
        case "log":
            host.log(_CONTROL.sub("?", rest.encode()[:_MAX_LOG_BYTES].decode(errors="ignore")))
            return True, b""
        case "instantclone.freeze":
            await host.freeze()
            return True, b""
    return (True, b"") if _HARMLESS.match(verb) else (False, b"Unknown command")


def _info_get(key: str, host: GuestHost) -> Answer:
    key = key.lower()
    value = host.config().get(key) if key.startswith(_PREFIX) else None
    return (False, b"No value found") if value is None else (True, value.encode())


async def _info_set(rest: str, host: GuestHost) -> Answer:
    key, _, value = rest.lstrip().partition(" ")
    key = key.lower()
    if not key.startswith(_PREFIX) or key == _PREFIX:
        return False, b"Permission denied"
    try:
        check_extra_config(key, value)
    except ValueError as exc:
        return False, str(exc).encode()
    present = {name: text for name, text in host.config().items() if name.startswith(_PREFIX)}
    after = {**present, key: value}
    size = sum(len(name) + len(text.encode()) for name, text in after.items())
    # Making a value smaller is always allowed: the user may have set more than the guest could.
    grows = key not in present or len(value) > len(present[key])
    if grows and (len(after) > MAX_GUEST_KEYS or size > MAX_GUEST_BYTES):
        return False, b"Too many guestinfo keys"
    await host.store(key, value)
    return True, b""
