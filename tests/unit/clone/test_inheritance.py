"""What a clone's hardware has from its source, and what it has not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from ramet.clone.check import clone_machine
from ramet.host.trying import _alone
from ramet.model.machine import Machine, Nic
from ramet.model.requests import CloneVm
from ramet.model.trying import TRY_MARK


def test_a_clone_of_a_trials_clone_is_not_removed_with_the_trials() -> None:
    source = Machine(name="web-try-1", extra_config={TRY_MARK: "remove", "guestinfo.role": "web"})
    live = cast("Any", SimpleNamespace(name=source.name, vm=SimpleNamespace(machine=source)))
    machine = clone_machine(live, CloneVm(names=("mine",)), "mine")
    assert machine.extra_config == {"guestinfo.role": "web"}
    marked = clone_machine(live, CloneVm(names=("web-try-2",), extra_config={TRY_MARK: "remove"}), "web-try-2")
    assert marked.extra_config == source.extra_config


def test_a_trial_is_off_user_mode_networking_which_leads_out() -> None:
    source = Machine(name="web", nics=(Nic(id="net0", network="user"), Nic(id="net1", network=None)))
    networks = SimpleNamespace(check_fence=lambda nic: None)
    rooms = SimpleNamespace(book=SimpleNamespace(network=lambda name: None), networks=networks)
    live = cast("Any", SimpleNamespace(name="web", vm=SimpleNamespace(machine=source), rooms=rooms))
    request = CloneVm(names=("t",), nics=tuple(_alone(nic, None) for nic in source.nics))
    assert [(nic.network, nic.connected) for nic in clone_machine(live, request, "t").nics] == [
        ("user", False),
        (None, True),
    ]
