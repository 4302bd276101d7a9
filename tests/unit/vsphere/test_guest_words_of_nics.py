"""What is shown of a guest's addresses: the host's word of its cards, and the guest's of all it has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ramet.guest.agent import Address, Interface
from ramet.model.machine import Nic
from ramet.vsphere.machine.guest import ip_address, nics

CARD, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:99"


def interface(name: str, mac: str, address: str | None) -> Interface:
    told = {"ip-address-type": "ipv4", "ip-address": address, "prefix": 16}
    addresses = [Address.model_validate(told)] if address else []
    made = Interface.model_validate({"name": name, "hardware-address": mac})
    return made.model_copy(update={"addresses": addresses})


LOOPBACK = interface("lo", "00:00:00:00:00:00", "127.0.0.1")


def guest(*interfaces: Interface, leases: dict[str, str] | None = None) -> Any:
    return SimpleNamespace(
        vm=SimpleNamespace(machine=SimpleNamespace(nics=(Nic(id="net0", mac=CARD, network="lab"),)), is_on=True),
        seen=SimpleNamespace(interfaces=(LOOPBACK, *interfaces)),
        guests=SimpleNamespace(addresses=lambda vm: leases or {}),
    )


@pytest.mark.parametrize(
    ("mo", "primary", "cards"),
    [
        (guest(interface("eth0", CARD, "10.0.0.5")), "10.0.0.5", [("lab", CARD, 4000, ["10.0.0.5"])]),
        (
            guest(interface("eth0", CARD, "10.0.0.5"), leases={"net0": "192.0.2.1"}),
            "192.0.2.1",
            [("lab", CARD, 4000, ["192.0.2.1", "10.0.0.5"])],
        ),
        (
            guest(interface("docker0", OTHER, "172.17.0.1"), interface("eth0", CARD, "10.0.0.5")),
            "10.0.0.5",
            [("lab", CARD, 4000, ["10.0.0.5"]), (None, OTHER, -1, ["172.17.0.1"])],
        ),
        (guest(interface("eth0", OTHER, "10.0.0.4")), "10.0.0.4", [(None, OTHER, -1, ["10.0.0.4"])]),
        (guest(interface("eth0", CARD, None), interface("dummy0", OTHER, None)), None, [("lab", CARD, 4000, [])]),
        (guest(), None, []),
    ],
    ids=["its card", "a lease", "a bridge in the guest", "its source's MAC", "no address", "nothing"],
)
def test_addresses_of_a_guest(mo: Any, primary: str | None, cards: list[Any]) -> None:
    assert ip_address(mo) == primary
    assert [(one.network, one.macAddress, one.deviceConfigId, list(one.ipAddress)) for one in nics(mo)] == cards
