"""What goes to the identity script, what is believed of its answer, and how its clock is measured."""

from __future__ import annotations

import base64
import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import DeadlineError, GuestError, UsageError
from ramet.guest.agent import Agent
from ramet.guest.guestfiles import guest_helper, identity_files, identity_script
from ramet.guest.identity import apply, encode_plan, freeze_hooks, parse_acknowledgement
from ramet.model.identity import Acknowledgement, Part, Plan, PlannedNic
from ramet.testing.fake_agent import FakeAgent, FakeRefusalError

SEED = bytes(range(64))
PRINT = "SHA256:" + "a" * 43


def environment(arguments: dict[str, Any]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in arguments["env"])


def said(text: str, exit_code: int = 0) -> dict[str, Any]:
    return {"exitcode": exit_code, "out-data": base64.b64encode(text.encode()).decode()}


def acknowledge(plan: Plan) -> str:
    return "".join(f"done {part.value}\n" for part in plan.parts) + f"generation {plan.generation}\n"


# To the guest


def test_a_plan_is_complete() -> None:
    nics = (
        PlannedNic(id="net0", mac="52:54:00:00:00:01", old_mac="52:54:00:00:00:02"),
        PlannedNic(
            id="net1", mac="52:54:00:00:00:03", old_mac="52:54:00:00:00:04", address="10.0.0.5/24", gateway="10.0.0.1"
        ),
    )
    plan = Plan(hostname="web", domain="example.org", dns=("10.0.0.1", "10.0.0.2"), nics=nics, thaw_hooks=True)
    variables = encode_plan(plan, entropy=SEED, clock_offset_ns=-1_250_000_000, helper=b"\x7fELF")
    assert variables["RAMET_DO"] == "apply"
    assert variables["RAMET_PARTS"] == "random clock tcp nics address hostname machine-id ssh-keys hooks"
    assert variables["RAMET_NICS"] == (
        "net0 52:54:00:00:00:01 52:54:00:00:00:02 dhcp -\nnet1 52:54:00:00:00:03 52:54:00:00:00:04 10.0.0.5/24 10.0.0.1"
    )
    assert variables["RAMET_CLOCK"] == "-2 750000000"
    assert variables["RAMET_CLOCK_TEXT"] == "-1.250000000"
    assert variables["RAMET_SEED"] == SEED.hex()
    assert (variables["RAMET_THAW"], variables["RAMET_LIMIT"], variables["RAMET_DNS"]) == (
        "yes",
        "30",
        "10.0.0.1 10.0.0.2",
    )


@given(st.integers(min_value=-(10**19), max_value=10**19))
def test_the_clocks_two_forms_say_the_same(offset_ns: int) -> None:
    variables = encode_plan(Plan(hostname="web"), entropy=SEED, clock_offset_ns=offset_ns, helper=b"")
    seconds, nanoseconds = map(int, variables["RAMET_CLOCK"].split())
    total = seconds * 10**9 + nanoseconds
    assert 0 <= nanoseconds < 10**9
    assert total == (offset_ns if abs(offset_ns) > 5_000_000 else 0)
    whole, _, fraction = variables["RAMET_CLOCK_TEXT"].lstrip("-").partition(".")
    assert int(whole + fraction) == abs(total)
    assert variables["RAMET_CLOCK_TEXT"].startswith("-") == (total < 0)


@pytest.mark.parametrize("size", [0, 31, 129])
def test_too_little_entropy_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="bytes of entropy"):
        encode_plan(Plan(hostname="web"), entropy=bytes(size))


# From the guest


def test_an_acknowledgement_is_read() -> None:
    text = f"""random reseeded
took random 20
done random
warning sshd does not run
hostname web-1
machine-id {"0a" * 16}
ssh-key ed25519 {PRINT}
address net1 10.0.0.5/24
tcp-killed 3
took address 30
took address 12
generation abc
"""
    assert parse_acknowledgement(text.encode()) == Acknowledgement(
        generation="abc",
        done=(Part.RANDOM,),
        random="reseeded",
        hostname="web-1",
        machine_id="0a" * 16,
        ssh_keys={"ed25519": PRINT},
        addresses={"net1": "10.0.0.5/24"},
        tcp_killed=3,
        warnings=("sshd does not run",),
        took_ms={"random": 20, "address": 42},
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "generation",
        "done random\n",
        "generation x\ndone everything\n",
        "generation x\nrandom yes\n",
        "generation x\ntook random -1\n",
        "generation x\ntook random 1e400\n",
        "generation x\ntook lunch 1\n",
        "generation x\nmachine-id \u0660" + "0" * 31,
        "generation x\nssh-key ed25519 MD5:00\n",
        "generation x\naddress net0 dhcp\n",
        "generation x\nhostname ../../etc\n",
        "generation x\nsurprise\n",
        "generation x\n" + "warning w\n" * 500,
        "generation x\nwarning " + "w" * 70000,
        "generation x\n" + "".join(f"address net{i} 10.0.0.1/8\n" for i in range(100)),
    ],
)
def test_nonsense_is_no_acknowledgement(text: str) -> None:
    with pytest.raises(GuestError):
        parse_acknowledgement(text.encode())


def test_the_guests_reason_is_told_without_its_control_characters() -> None:
    with pytest.raises(GuestError, match=r"failed at ssh-keys: there is no ssh-keygen  \[31m") as caught:
        parse_acknowledgement(b"done random\nproblem ssh-keys there is no\tssh-keygen \x1b[31m\n")
    assert caught.value.fields["part"] == "ssh-keys"


def test_a_reason_of_several_lines_in_any_encoding_is_told() -> None:
    with pytest.raises(GuestError, match="failed at hooks: caf\ufffd: No space left on device") as caught:
        parse_acknowledgement(b"done random\nproblem hooks caf\xc3:\nNo space left on device\n")
    assert caught.value.fields["part"] == "hooks"


_KEYS = (
    *("done", "took", "random", "hostname", "machine-id", "ssh-key", "address", "tcp-killed", "warning", "hooks"),
    *("generation", "problem"),
)
_LINES = st.lists(st.tuples(st.sampled_from(_KEYS), st.text(max_size=60)).map(" ".join), max_size=30)


@given(st.one_of(st.binary(max_size=2000), _LINES.map(lambda lines: "\n".join(lines).encode(errors="replace"))))
def test_whatever_a_guest_says_is_an_acknowledgement_or_a_guest_error(output: bytes) -> None:
    with contextlib.suppress(GuestError):
        read = parse_acknowledgement(output)
        assert all(text.isprintable() for text in (*read.warnings, read.hostname, read.generation))


# With an agent


class Clock:
    """The guest's clock is `behind_s`; an answer of its agent takes `answer_s`."""

    def __init__(self, behind_s: float, answer_s: float = 0.001) -> None:
        self.behind_s = behind_s
        self.answer_s = answer_s
        self._ticks = itertools.count()
        self.time = 1_700_000_000.0

    def now(self) -> float:
        self.time += self.answer_s * (next(self._ticks) >= 0)
        return self.time

    def guest(self, arguments: dict[str, Any]) -> int:
        return int((self.time - self.behind_s) * 1e9)


async def test_the_clock_is_moved_by_what_was_measured(fake: FakeAgent, agent: Agent) -> None:
    clock = Clock(behind_s=300.5)
    fake.commands["guest-get-time"] = clock.guest
    plan = Plan(hostname="web")

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        clock.behind_s -= float(environment(arguments)["RAMET_CLOCK_TEXT"])
        return said(acknowledge(plan))

    fake.run = run
    told = await apply(agent, plan, entropy=SEED, now=clock.now)
    assert told.done == tuple(Part)
    assert told.clock_error_ms is not None
    assert abs(told.clock_error_ms) < 5


async def test_a_clock_that_is_still_wrong_is_set_again_and_not_for_ever(fake: FakeAgent, agent: Agent) -> None:
    clock, parts = Clock(behind_s=60), []
    fake.commands["guest-get-time"] = clock.guest
    plan = Plan(hostname="web")

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        variables = environment(arguments)
        parts.append(variables["RAMET_PARTS"])
        clock.behind_s -= float(variables["RAMET_CLOCK_TEXT"]) * 0.5
        return said(acknowledge(plan))

    fake.run = run
    with pytest.raises(GuestError, match=r"clock is still \+3\.7"):
        await apply(agent, plan, entropy=SEED, now=clock.now)
    assert parts == [" ".join(Part), *["clock"] * 3]


async def test_a_clock_that_is_right_after_some_tries_is_right(fake: FakeAgent, agent: Agent) -> None:
    clock, shares = Clock(behind_s=60), iter([0.5, 0.9, 1.0])
    fake.commands["guest-get-time"] = clock.guest
    plan = Plan(hostname="web")

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        clock.behind_s -= float(environment(arguments)["RAMET_CLOCK_TEXT"]) * next(shares)
        return said(acknowledge(plan))

    fake.run = run
    told = await apply(agent, plan, entropy=SEED, now=clock.now)
    assert told.clock_error_ms is not None
    assert abs(told.clock_error_ms) < 5


async def test_a_slow_agents_clock_is_held_to_the_same_bound(fake: FakeAgent, agent: Agent) -> None:
    """Half of the time that an answer takes is as much as is known; what may be more than the bound is refused."""
    clock = Clock(behind_s=0.0, answer_s=1.0)
    fake.commands["guest-get-time"] = clock.guest
    plan = Plan(hostname="web")
    fake.run = lambda arguments: said(acknowledge(plan))
    with pytest.raises(GuestError, match=r"clock is still \+0\.5"):
        await apply(agent, plan, entropy=SEED, now=clock.now)


NO_CLOCK = tuple(part for part in Part if part is not Part.CLOCK)


async def test_less_than_the_plan_is_no_acknowledgement(fake: FakeAgent, agent: Agent) -> None:
    plan = Plan(hostname="web", parts=NO_CLOCK)
    fake.run = lambda arguments: said(acknowledge(plan).replace("done nics\n", ""))
    with pytest.raises(GuestError, match="nics is missing"):
        await apply(agent, plan, entropy=SEED)
    fake.run = lambda arguments: said(acknowledge(plan).replace("generation ", "generation other-"))
    with pytest.raises(GuestError, match="the generation is missing"):
        await apply(agent, plan, entropy=SEED)


async def test_a_guest_that_has_the_script_and_the_program_is_not_sent_them(fake: FakeAgent, agent: Agent) -> None:
    plan, ran = Plan(hostname="web", parts=NO_CLOCK), []

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        ran.append(arguments)
        return said(acknowledge(plan))

    fake.run = run
    await apply(agent, plan, entropy=SEED)
    assert len(ran) == 1
    assert environment(ran[0])["RAMET_HELPER"] == ""
    assert sum(map(len, ran[0]["arg"])) < 300
    assert ran[0]["arg"][3:] == [path for path, _ in identity_files()]


async def test_a_guest_without_them_is(fake: FakeAgent, agent: Agent) -> None:
    plan, ran = Plan(hostname="web", parts=NO_CLOCK), []

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        ran.append(arguments)
        return said(acknowledge(plan)) if len(ran) == 2 else {"exitcode": 97}

    fake.run = run
    await apply(agent, plan, entropy=SEED)
    assert ran[1]["arg"][1] == identity_script().decode()
    assert base64.b64decode(environment(ran[1])["RAMET_HELPER"]) == guest_helper()
    assert environment(ran[0])["RAMET_SSH_KEY"] == environment(ran[1])["RAMET_SSH_KEY"] != ""


async def test_a_guest_whose_script_is_empty_is_sent_it(fake: FakeAgent, agent: Agent) -> None:
    plan, ran = Plan(hostname="web", parts=NO_CLOCK), []

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        ran.append(arguments)
        return said(acknowledge(plan) if len(ran) == 2 else "")

    fake.run = run
    await apply(agent, plan, entropy=SEED)
    assert len(ran) == 2


async def test_a_script_that_breaks_is_told_with_its_error(fake: FakeAgent, agent: Agent) -> None:
    fake.run = lambda arguments: {"exitcode": 2, "err-data": base64.b64encode(b"sh: syntax error").decode()}
    with pytest.raises(GuestError, match="sh: syntax error"):
        await apply(agent, Plan(hostname="web", parts=NO_CLOCK), entropy=SEED)


async def test_a_guest_that_never_answers(fake: FakeAgent, agent: Agent) -> None:
    fake.run = lambda arguments: None
    with pytest.raises(DeadlineError):
        await apply(agent, Plan(hostname="web", parts=NO_CLOCK, timeout_s=0.2), entropy=SEED)


def is_search(arguments: dict[str, Any]) -> bool:
    """The short command that comes first, and only looks for hooks."""
    return "exit 3" in arguments["arg"][1]


def with_hooks(text: str, exit_code: int = 0) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arguments: said("", 3) if is_search(arguments) else said(text, exit_code)


async def test_a_guest_without_freeze_hooks_is_spared_the_script(fake: FakeAgent, agent: Agent) -> None:
    ran: list[bool] = []

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        ran.append(is_search(arguments))
        return said("")

    fake.run = run
    assert not await freeze_hooks(agent, "freeze", 5)
    assert ran == [True]


async def test_freeze_hooks_say_whether_there_are_any(fake: FakeAgent, agent: Agent) -> None:
    fake.run = with_hooks("hooks 0\n")
    assert not await freeze_hooks(agent, "freeze", 5)
    fake.run = with_hooks("hooks 2\n")
    assert await freeze_hooks(agent, "freeze", 5)
    fake.run = with_hooks("problem freeze the hook a ended with status 1: no\n", 1)
    with pytest.raises(GuestError, match="the hook a ended with status 1"):
        await freeze_hooks(agent, "freeze", 5)
    fake.run = lambda arguments: said("warning the hook b ended with status 1: no\nhooks 2\n")
    with pytest.raises(GuestError, match="the hook b"):
        await freeze_hooks(agent, "thaw", 5)


async def test_an_agent_that_may_run_nothing_has_no_hooks(fake: FakeAgent, agent: Agent) -> None:
    def refuse(arguments: dict[str, Any]) -> Any:
        raise FakeRefusalError("CommandNotFound", "Command guest-exec has been disabled")

    fake.commands["guest-exec"] = refuse
    assert not await freeze_hooks(agent, "freeze", 5)
    with pytest.raises(GuestError) as caught:
        await apply(agent, Plan(hostname="web", parts=NO_CLOCK), entropy=SEED)
    assert "/etc/sysconfig/qemu-ga" in (caught.value.hint or "")
