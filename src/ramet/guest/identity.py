"""Make a clone's guest a machine of its own, by a script that its agent runs, and read what it acknowledges.

The script (files/identity-network and files/identity, one after the other) comes from the host, with a small program
for what a shell cannot do: a guest needs nothing but its agent. One that has both already, of this very version, is not
sent them: its agent takes a quarter of a second under TCG to read so much. Everything the script prints is the guest's
word: bounded and typed here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from ramet.errors import DeadlineError, GuestError, RametError, UsageError
from ramet.guest.agent import Agent, ExecOutcome
from ramet.guest.guestfiles import HELPER_FOLDER, guest_helper, helper_name, identity_script, identity_script_name
from ramet.guest.host_keys import new_host_key
from ramet.model.identity import Acknowledgement, Part, Plan

MIN_ENTROPY_BYTES = 32
MAX_ENTROPY_BYTES = 128
MAX_CLOCK_ERROR_S = 0.1
_SLACK_S = 10.0
_NS = 1_000_000_000
_RIGHT_NS = 5_000_000
"""A clock that is right to this is left alone."""
_ENOUGH_NS = 20_000_000
"""A measurement that is this good is not repeated: far below what a clock may be wrong by."""
_MEASUREMENTS = 6
_CORRECTIONS = 3
_MAX_BYTES = 64 * 1024
_MAX_LINES = 400
_MAX_TEXT = 500
_MAX_ITEMS = 64
_GENERATION = re.compile(r"[A-Za-z0-9-]{1,64}")
_HOSTNAME = re.compile(r"[A-Za-z0-9.-]{1,64}")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_KIND = re.compile(r"[a-z0-9-]{1,32}")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_NIC = re.compile(r"[a-z0-9-]{1,32}")
_ADDRESS = re.compile(r"[0-9.]{7,15}/[0-9]{1,2}")

Which = Literal["freeze", "thaw"]


async def apply(agent: Agent, plan: Plan, *, entropy: bytes, now: Callable[[], float] = time.time) -> Acknowledgement:
    """Have the guest carry out the plan, while its links are down, and return what it set. May be done again.

    `entropy` is fresh for this clone, 32 to 128 bytes; `now` the time that the guest is to have, in Unix seconds.
    Raises `GuestError` when a part failed or the guest does not say that all was done, `DeadlineError` after the
    plan's `timeout_s`, OSError when QEMU is not there. Then the machine may be half itself: keep its links down.
    """
    try:
        async with asyncio.timeout(plan.timeout_s):
            return await _apply(agent, plan, entropy, now)
    except TimeoutError:
        raise DeadlineError(
            f"The guest did not acknowledge its identity within {plan.timeout_s:g} s.",
            hint="Check that qemu-guest-agent runs in the guest and may run programs (guest-exec).",
        ) from None


async def _apply(agent: Agent, plan: Plan, entropy: bytes, now: Callable[[], float]) -> Acknowledgement:
    has_clock = plan.has(Part.CLOCK)
    offset_ns = (await _clock_offset(agent, now)).ns if has_clock else 0
    answer = await _run(agent, encode_plan(plan, entropy=entropy, clock_offset_ns=offset_ns), plan.timeout_s)
    acknowledged = _checked(answer, plan)
    if not has_clock:
        return acknowledged
    return acknowledged.changed(clock_error_ms=await _verify_clock(agent, plan, entropy, now))


_HOOK_FOUND = 3
_FIND_HOOK = f'for f in /etc/ramet/freeze.d/*; do [ -d "$f" ] || [ ! -x "$f" ] || exit {_HOOK_FOUND}; done'


async def freeze_hooks(agent: Agent, which: Which, timeout_s: float) -> bool:
    """Run the guest's /etc/ramet/freeze.d/* with "freeze" or "thaw"; whether there are any.

    A freeze hook that fails, or has not ended after `timeout_s` for all, is a `GuestError`, and the thaw hooks have
    been run then, too. All thaw hooks are run before a `GuestError` tells of those that failed.
    """
    begun = which == "thaw"
    try:
        if not begun and not await _has_freeze_hooks(agent, timeout_s):
            return False
        begun = True
        return _hooks_ran(await _run(agent, _environment(which, timeout_s), 2 * timeout_s + _SLACK_S))
    except GuestError as error:
        if error.fields.get("error_class") == "CommandNotFound":
            return False  # an agent that may run nothing runs no hooks
        raise
    except (DeadlineError, OSError):
        if which == "freeze" and begun:
            with contextlib.suppress(RametError, OSError):
                await _run(agent, _environment("thaw", timeout_s), timeout_s + _SLACK_S)
        raise


async def _has_freeze_hooks(agent: Agent, timeout_s: float) -> bool:
    """Most guests have none, and every live clone asks: a shell that reads the whole script first takes 100 ms under
    TCG, this one a third of it."""
    outcome = await agent.exec(["/bin/sh", "-c", _FIND_HOOK], timeout_s=timeout_s)
    return outcome.exit_code == _HOOK_FOUND


def _hooks_ran(output: bytes) -> bool:
    answer = _read(output)
    if answer.values.get("warnings"):
        raise GuestError(f"Hooks failed in the guest: {'; '.join(answer.values['warnings'])[:_MAX_TEXT]}")
    return bool(answer.values.get("hooks"))


_NOT_THERE = 97
_FROM_GUEST = f'[ -r "$1" ] && {{ [ -z "$2" ] || [ -x "$2" ]; }} || exit {_NOT_THERE}; . "$1"'


async def _run(agent: Agent, environment: Mapping[str, str], timeout_s: float) -> bytes:
    """The guest's own script; else the same one, sent along."""
    script, name = identity_script(), environment["RAMET_HELPER_NAME"]
    files = (f"{HELPER_FOLDER}/{identity_script_name(script)}", f"{HELPER_FOLDER}/{name}" if name else "")
    shell, slim = ("/bin/sh", "-c"), {**environment, "RAMET_HELPER": ""}
    outcome = await agent.exec([*shell, _FROM_GUEST, "ramet-identity", *files], env=slim, timeout_s=timeout_s)
    if outcome.exit_code == _NOT_THERE or (outcome.ok and not outcome.stdout):  # not there, or empty
        argv = [*shell, script.decode(), "ramet-identity"]
        outcome = await agent.exec(argv, env=environment, timeout_s=timeout_s)
    if not outcome.ok and b"problem " not in outcome.stdout:
        raise GuestError(f"The identity script failed in the guest: {_why(outcome)}")
    return outcome.stdout


def _why(outcome: ExecOutcome) -> str:
    said = _clean(outcome.stderr[-_MAX_TEXT:].decode(errors="replace"))
    return said or f"exit status {outcome.exit_code}, signal {outcome.signal}"


# The clock


@dataclass(frozen=True)
class _Offset:
    """By how much the guest's clock must be moved, and how sure that is."""

    ns: int
    doubt_ns: int


async def _clock_offset(agent: Agent, now: Callable[[], float]) -> _Offset:
    """The best of a few measurements: none is wrong by more than half the time it took."""
    best: _Offset | None = None
    for _ in range(_MEASUREMENTS):
        before = now()
        guest_ns = await agent.command("guest-get-time")
        after = now()
        if not isinstance(guest_ns, int) or not 0 <= guest_ns < 1 << 63:
            raise GuestError("The guest agent's answer to guest-get-time makes no sense.")
        one = _Offset(int((before + after) / 2 * _NS) - guest_ns, int((after - before) / 2 * _NS))
        best = min(best or one, one, key=lambda offset: offset.doubt_ns)
        if best.doubt_ns <= _ENOUGH_NS:
            break
    assert best is not None
    return best


async def _verify_clock(agent: Agent, plan: Plan, entropy: bytes, now: Callable[[], float]) -> float:
    """The guest's error in ms, after a few more tries if it is too large.

    On a host with many guests to a processor an answer takes a while, and a measurement may be as wrong as a clock.
    """
    left = await _clock_offset(agent, now)
    for _ in range(_CORRECTIONS):
        if abs(left.ns) / _NS <= MAX_CLOCK_ERROR_S / 2:
            break
        again = plan.changed(parts=(Part.CLOCK,), thaw_hooks=False)
        await _run(agent, encode_plan(again, entropy=entropy, clock_offset_ns=left.ns), plan.timeout_s)
        left = await _clock_offset(agent, now)
    if abs(left.ns) / _NS > MAX_CLOCK_ERROR_S:
        raise GuestError(f"The guest's clock is still {left.ns / _NS:+.3f} s off after it was set.")
    return round(-left.ns / 1e6, 3)


# To the guest


def encode_plan(plan: Plan, *, entropy: bytes, clock_offset_ns: int = 0, helper: bytes | None = None) -> dict[str, str]:
    """The script's environment. Of variables, others than root see nothing, unlike of arguments."""
    if not MIN_ENTROPY_BYTES <= len(entropy) <= MAX_ENTROPY_BYTES:
        raise UsageError(f"A clone needs {MIN_ENTROPY_BYTES} to {MAX_ENTROPY_BYTES} bytes of entropy.")
    if abs(clock_offset_ns) <= _RIGHT_NS:
        clock_offset_ns = 0
    seconds, rest_ns = divmod(clock_offset_ns, _NS)
    helper = guest_helper() if helper is None else helper
    return {
        **_environment("apply", plan.hooks_timeout_s),
        "RAMET_GENERATION": plan.generation,
        "RAMET_PARTS": " ".join(part.value for part in Part if plan.has(part)),
        "RAMET_TCP": plan.tcp.value,
        "RAMET_HOSTNAME": plan.hostname,
        "RAMET_DOMAIN": plan.domain or "",
        "RAMET_DNS": " ".join(plan.dns),
        "RAMET_NICS": "\n".join(_nic_lines(plan)),
        "RAMET_THAW": "yes" if plan.thaw_hooks else "no",
        "RAMET_CLOCK": f"{seconds} {rest_ns}",
        "RAMET_CLOCK_TEXT": f"{'-' * (clock_offset_ns < 0)}{abs(clock_offset_ns) // _NS}."
        f"{abs(clock_offset_ns) % _NS:09}",
        "RAMET_SEED": entropy.hex(),
        **(_host_key() if plan.has(Part.SSH_KEYS) else {}),
        "RAMET_HELPER": base64.b64encode(helper).decode(),
        "RAMET_HELPER_NAME": helper_name(helper),
    }


def _host_key() -> dict[str, str]:
    key = new_host_key()
    return {
        "RAMET_SSH_KEY": key.private,
        "RAMET_SSH_PUBLIC": key.public,
        "RAMET_SSH_FINGERPRINT": key.fingerprint,
    }


def _nic_lines(plan: Plan) -> Iterator[str]:
    for nic in plan.nics:
        yield f"{nic.id} {nic.mac} {nic.old_mac} {nic.address} {nic.gateway or '-'}"


def _environment(action: str, hooks_timeout_s: float) -> dict[str, str]:
    names = (
        "GENERATION",
        "PARTS",
        "TCP",
        "HOSTNAME",
        "DOMAIN",
        "DNS",
        "NICS",
        "CLOCK",
        "CLOCK_TEXT",
        "SEED",
        "SSH_KEY",
        "SSH_PUBLIC",
        "SSH_FINGERPRINT",
        "HELPER",
        "HELPER_NAME",
    )
    empty = {f"RAMET_{name}": "" for name in names}
    # Whole seconds: shells count no others.
    return {**empty, "RAMET_DO": action, "RAMET_THAW": "no", "RAMET_LIMIT": str(max(1, round(hooks_timeout_s)))}


# From the guest


@dataclass
class _Answer:
    """What the lines say, as far as they are read."""

    values: dict[str, Any] = field(default_factory=dict)
    problem: tuple[str, str] | None = None

    def take(self, line: str) -> None:
        if self.problem is not None:  # the last thing that is said, and it may have several lines
            part, why = self.problem
            self.problem = part, f"{why} {line}"[:_MAX_TEXT]
            return
        key, _, value = line.partition(" ")
        match key:
            case "problem":
                part, _, why = value.partition(" ")
                self.problem = part, why
            case "random":
                self.values[key] = value
            case "generation":
                self.values[key] = _matching(_GENERATION, value, key)
            case "hostname":
                self.values[key] = _matching(_HOSTNAME, value, key)
            case "machine-id":
                self.values["machine_id"] = _matching(_MACHINE_ID, value, key)
            case "tcp-killed":
                self.values["tcp_killed"] = _number(value)
            case "hooks":
                self.values[key] = _number(value)
            case "done" | "warning":
                name, item = ("warnings", value) if key == "warning" else (key, Part(value))
                self.values[name] = (*self.values.get(name, ()), item)
            case "took":
                self._took(*_pair(value))
            case "ssh-key":
                kind, fingerprint = _pair(value)
                self._map("ssh_keys", _matching(_KIND, kind, key), _matching(_FINGERPRINT, fingerprint, key))
            case "address":
                nic, address = _pair(value)
                self._map("addresses", _matching(_NIC, nic, key), _matching(_ADDRESS, address, key))
            case _:
                raise ValueError(f"unknown: {line[:50]}")

    def _took(self, part: str, milliseconds: str) -> None:
        before = self.values.get("took_ms", {}).get(part, 0)
        self._map("took_ms", Part(part).value, before + _number(milliseconds))

    def _map(self, name: str, key: str, value: object) -> None:
        known = self.values.setdefault(name, {})
        known[key] = value
        if len(known) > _MAX_ITEMS:
            raise ValueError(f"too many {name}")


def _pair(value: str) -> tuple[str, str]:
    first, _, second = value.partition(" ")
    return first, second


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise ValueError(f"{text[:50]!r} is not a number")
    return int(text)


def _matching(pattern: re.Pattern[str], value: str, name: str) -> str:
    if not pattern.fullmatch(value):
        raise ValueError(f"no {name}: {value[:50]!r}")
    return value


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT]).strip()


def parse_acknowledgement(output: bytes) -> Acknowledgement:
    """What the script printed. Raises `GuestError`: with the guest's reason, or because it makes no sense."""
    values = {key: value for key, value in _read(output).values.items() if key != "hooks"}
    values["done"] = tuple(part for part in Part if part in values.get("done", ()))
    try:
        return Acknowledgement.model_validate(values)
    except ValidationError as error:
        raise _senseless() from error


def _read(output: bytes) -> _Answer:
    answer = _Answer()
    if len(output) > _MAX_BYTES or output.count(b"\n") > _MAX_LINES:
        raise _senseless()
    try:
        # A hook's words need not be UTF-8, and are cut anywhere.
        for line in output.decode(errors="replace").split("\n"):
            if line:
                answer.take(_clean(line))
    except ValueError as error:
        raise _senseless() from error
    if answer.problem is not None:
        part, why = answer.problem
        raise GuestError(f"The guest's identity failed at {part or 'something'}: {why}", part=part)
    return answer


def _senseless() -> GuestError:
    return GuestError("What the guest says of its identity makes no sense.")


def _checked(output: bytes, plan: Plan) -> Acknowledgement:
    """The acknowledgement, if it is of this plan and of all of it."""
    acknowledged = parse_acknowledgement(output)
    missing = [part.value for part in plan.parts if part not in acknowledged.done]
    if acknowledged.generation != plan.generation or missing:
        left = ", ".join(missing) or "the generation"
        raise GuestError(f"The guest did not acknowledge all of its identity: {left} is missing.")
    return acknowledged
