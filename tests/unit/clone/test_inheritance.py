"""What a clone's hardware has from its source, and what it has not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from ramet.clone.check import clone_machine
from ramet.model.machine import Machine
from ramet.model.requests import CloneVm
from ramet.model.trying import TRY_MARK


def test_a_clone_of_a_trials_clone_is_not_removed_with_the_trials() -> None:
    source = Machine(name="web-try-1", extra_config={TRY_MARK: "remove", "guestinfo.role": "web"})
    live = cast("Any", SimpleNamespace(name=source.name, vm=SimpleNamespace(machine=source)))
    machine = clone_machine(live, CloneVm(names=("mine",)), "mine")
    assert machine.extra_config == {"guestinfo.role": "web"}
    marked = clone_machine(live, CloneVm(names=("web-try-2",), extra_config={TRY_MARK: "remove"}), "web-try-2")
    assert marked.extra_config == source.extra_config
