"""Port groups that several callers make and change at the same time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ramet.errors import ConflictError
from ramet.host.stock import StockDesk
from ramet.model.host import EgressRule, Network
from ramet.model.requests import ChangeNetwork, CreateNetwork


class Networks:
    """Both the inventory's table and what makes the networks, as slow as the real ones are."""

    def __init__(self) -> None:
        self.kept: dict[str, Network] = {}
        self.made: dict[str, Network] = {}

    def get(self, name: str) -> Network | None:
        return self.kept.get(name)

    def find(self, name: str) -> Network:
        return self.kept[name]

    async def put(self, network: Network) -> None:
        await asyncio.sleep(0)
        self.kept[network.name] = network

    add = put

    async def ensure(self, network: Network) -> Network:
        await asyncio.sleep(0)
        self.made[network.name] = network
        return network


@pytest.fixture
def networks() -> Networks:
    return Networks()


@pytest.fixture
def stock(networks: Networks) -> StockDesk:
    rooms = SimpleNamespace(networks=networks, book=SimpleNamespace(emit=lambda *_: None))
    floor: Any = SimpleNamespace(inventory=SimpleNamespace(networks=networks), rooms=rooms)
    tasks: Any = None
    return StockDesk(floor, tasks)


async def test_no_change_is_lost(stock: StockDesk, networks: Networks) -> None:
    await stock.create_network(CreateNetwork(name="lab"))
    rules = [EgressRule(cidr=f"10.0.{n}.0/24") for n in range(5)]
    await asyncio.gather(*(stock.change_network("lab", ChangeNetwork(add_rules=(rule,))) for rule in rules))
    assert networks.kept["lab"].egress == networks.made["lab"].egress == tuple(rules)


async def test_the_second_of_a_name_changes_nothing(stock: StockDesk, networks: Networks) -> None:
    one, two = (
        asyncio.create_task(stock.create_network(CreateNetwork(name="lab", isolated=isolated)))
        for isolated in (True, False)
    )
    with pytest.raises(ConflictError):
        await two
    assert await one == networks.kept["lab"] == networks.made["lab"]
    assert networks.made["lab"].isolated
