"""``ramet pool``: what is asked of the daemon, and how pools are shown."""

from __future__ import annotations

import json

import pytest

from ramet.model.machine import VmState
from ramet.model.pool import PoolState, PoolView, SetPool
from ramet.model.units import MIB
from tests.unit.cli.cli_kit import FakeClient, run, vm_view
from tests.unit.cli.test_complete import completed


@pytest.fixture
def client() -> FakeClient:
    pool = PoolView(
        vm_id="id-web",
        vm="web",
        state=PoolState.FULL,
        size=5,
        ready=5,
        taken=12,
        refill_per_s=9.5,
        memory_budget_mib=128,
        unique_bytes=2 * MIB,
        overhead_bytes=75 * MIB,
    )
    web = vm_view("web", state=VmState.FROZEN, frozen=True)
    return FakeClient(vms={"web": web, "db": vm_view("db")}, pools=[pool])


def test_a_pool_is_set(client: FakeClient) -> None:
    result = run(client, "pool", "set", "web", "--size", "5", "--memory-budget", "1G")
    assert client.asked("set_pool") == [("web", SetPool(size=5, memory_budget_mib=1024))]
    assert result.stdout == "web has a pool of 5\n"


def test_a_pool_of_a_vm_that_is_not_frozen_waits(client: FakeClient) -> None:
    assert (
        run(client, "pool", "set", "db", "--size", "2").stdout == "db has a pool of 2, which fills when it is frozen\n"
    )


def test_size_0_gives_it_up(client: FakeClient) -> None:
    assert run(client, "pool", "set", "web", "--size", "0").stdout == "web has no pool\n"


@pytest.mark.parametrize("options", [(), ("--size", "-1"), ("--size", "1", "--memory-budget", "much")])
def test_what_cannot_be_is_refused_before_anything_is_asked(client: FakeClient, options: tuple[str, ...]) -> None:
    assert run(client, "pool", "set", "web", *options).exit_code == 2
    assert client.calls == []


def test_pools_are_listed(client: FakeClient) -> None:
    assert run(client, "pool", "ls").stdout == (
        "NAME  STATE  READY  TAKEN  REFILL  UNIQUE  OVERHEAD   BUDGET\n"
        "web   full     5/5     12   9.5/s   2 MiB    75 MiB  128 MiB\n"
    )
    shown = json.loads(run(client, "pool", "ls", "--json").stdout)
    assert [(one["ready"], one["taken"], one["cost_bytes"]) for one in shown] == [(5, 12, 77 * MIB)]


def test_why_a_pool_is_not_full_is_told(client: FakeClient) -> None:
    client.pools = [client.pools[0].changed(state=PoolState.FAILING, problem="The disk is full.")]
    assert "web: The disk is full." in run(client, "pool", "ls").stderr


def test_pools_are_removed(client: FakeClient) -> None:
    assert run(client, "pool", "rm", "web").stdout == "the pool of web is removed\n"
    assert client.asked("remove_pool") == [("web",)]
    assert "Did you mean 'web'?" in run(client, "pool", "rm", "wep").stderr


def test_completion(client: FakeClient) -> None:
    assert completed("ramet pool set ", client) == ["db", "web"]
    assert completed("ramet pool rm ", client) == ["web"]
