"""A clone without the identity it was to have is on no network, whatever was before, and whatever is plugged in."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.clone.identity import give
from ramet.errors import BusyError, DeadlineError, GuestError
from ramet.machine.hardware import add_nic
from ramet.machine.live import LiveMachine
from ramet.machine.power import restore_links
from ramet.model.identity import Acknowledgement, Identity, IdentityState, Plan
from ramet.model.machine import Machine, Nic, Vm, VmState
from ramet.model.requests import NicRequest


class FakeQmp:
    def __init__(self) -> None:
        self.up: dict[str, bool] = {}

    async def set_link(self, nic_id: str, up: bool) -> None:
        self.up[nic_id] = up

    async def hotplug_nic(self, nic: Nic, tap_fd: int | None) -> None:
        self.up[nic.id] = True


class FakeNetworks:
    privileged = True

    def __init__(self) -> None:
        self.cables: dict[str, str | None] = {}

    async def attach(self, tap: str, network: str | None, nic: Nic) -> None:
        self.cables[tap] = network


class SilentAgent:
    async def ping(self, *, timeout_s: float) -> None:
        raise GuestError("silence")


class FakeLive:
    """What these functions ask of a LiveMachine."""

    id, name, identifying = "c1", "clone", False
    agent: Any = SilentAgent()

    def __init__(self, state: IdentityState, **nic: Any) -> None:
        plan = Plan(hostname="clone")
        done = Acknowledgement(generation=plan.generation) if state is IdentityState.ACKNOWLEDGED else None
        self.vm = Vm(
            machine=Machine(name="clone", nics=(Nic(id="net0", network="default", **nic),)),
            state=VmState.RUNNING,
            identity=Identity(state=state, plan=plan, acknowledgement=done),
        )
        self.qmp, networks = FakeQmp(), FakeNetworks()
        self.taps = {"net0": "tap0"}
        book = SimpleNamespace(network=lambda name: SimpleNamespace(fenced=False), emit=lambda *_: None)
        self.rooms = SimpleNamespace(book=book, networks=networks)

    async def change(self, **update: Any) -> None:
        self.vm = self.vm.changed(**update)


def fake(live: FakeLive) -> LiveMachine:
    return cast("LiveMachine", live)


async def test_one_that_is_asked_again_and_fails_is_off_the_network_as_its_record_says() -> None:
    live = FakeLive(IdentityState.ACKNOWLEDGED)
    live.qmp.up["net0"], live.rooms.networks.cables["tap0"] = True, "default"
    with pytest.raises(GuestError):
        await give(fake(live))
    assert live.vm.identity.state is IdentityState.FAILED
    assert live.qmp.up == {"net0": False}
    assert live.rooms.networks.cables == {"tap0": None}
    assert not live.identifying


class HungAgent:
    async def ping(self, *, timeout_s: float) -> None:
        await asyncio.get_running_loop().create_future()


async def test_one_that_never_answers_is_told_with_what_to_do() -> None:
    live = FakeLive(IdentityState.PENDING)
    live.agent = HungAgent()
    plan = live.vm.identity.plan
    assert plan is not None
    live.vm = live.vm.changed(identity=live.vm.identity.changed(plan=plan.changed(timeout_s=0.05)))
    with pytest.raises(DeadlineError, match="'clone' did not acknowledge within"):
        await give(fake(live))
    assert live.vm.identity.state is IdentityState.FAILED
    assert "ramet vm identify clone" in (live.vm.identity.problem or "")


async def test_nobody_asks_a_guest_that_is_being_asked() -> None:
    live = FakeLive(IdentityState.PENDING)
    live.identifying = True
    with pytest.raises(BusyError):
        await give(fake(live))
    assert live.vm.identity.state is IdentityState.PENDING


@pytest.mark.parametrize(
    ("state", "up"),
    [(IdentityState.PENDING, False), (IdentityState.FAILED, False), (IdentityState.ACKNOWLEDGED, True)],
)
async def test_a_card_in_user_mode_is_held_as_well(
    state: IdentityState, up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Vm, "is_on", property(lambda vm: True))
    live = FakeLive(state)
    await add_nic(fake(live), NicRequest(network="user"))
    assert live.qmp.up == {"net1": up}


async def test_a_saved_state_does_not_decide_on_links() -> None:
    """Its link was down when it was suspended, and the record has changed since."""
    live = FakeLive(IdentityState.BARE)
    live.qmp.up["net0"] = False
    await restore_links(fake(live), all_=True)
    assert live.qmp.up == {"net0": True}
