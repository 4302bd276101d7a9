"""An address is never given twice: leased, reserved, translated, given up, and restarted, in whichever order."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ramet.errors import CapacityError, ConflictError, UsageError
from ramet.model.host import Network
from ramet.model.machine import Inside
from ramet.network.addresses import gateway_of, host_range
from ramet.network.fence import learned
from ramet.network.ledger import Claim, Ledger
from tests.unit.network.network_kit import Lab, needs_privilege

OPEN, FENCED = "10.1.0.0/28", "10.2.0.0/29"
CIDRS = {"open": OPEN, "fenced": FENCED}
INSIDE = Inside(network="lab", cidr="10.3.0.0/28")
MACS = [f"52:54:00:00:00:{number:02x}" for number in range(8)]

macs = st.sampled_from(MACS)
taps = st.sampled_from([f"rt-{number:09}-0" for number in range(8)])
open_addresses = st.integers(0, 15).map(lambda n: str(IPv4Address("10.1.0.0") + n))
inner_addresses = st.integers(0, 15).map(lambda n: str(IPv4Address("10.3.0.0") + n))


class Addresses(RuleBasedStateMachine):
    """dnsmasq is played: who has a reservation gets it unless it is leased, others get what nobody has reserved."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.leases: dict[str, str] = {}
        self.used: dict[str, str] = {}  # static addresses that guests were told to set
        self.restart()

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    @rule()
    def restart(self) -> None:
        self.ledger = Ledger(self.directory / "addresses.json")
        self.ledger.load()
        assert self.ledger.problem is None

    @rule(mac=macs)
    def lease(self, mac: str) -> None:
        reserved = self.ledger.reservations("open")
        first, last = host_range(OPEN)
        free = [str(IPv4Address(n)) for n in range(int(first), int(last) + 1)]
        free = [address for address in free if address not in {*self.leases.values(), *reserved.values()}]
        own = reserved.get(mac)
        if own is not None and own not in [address for who, address in self.leases.items() if who != mac]:
            self.leases[mac] = own
        elif mac not in self.leases and free:
            self.leases[mac] = free[0]

    @rule(mac=macs)
    def release(self, mac: str) -> None:
        self.leases.pop(mac, None)

    @rule(wanted=st.dictionaries(macs, open_addresses, max_size=3))
    def reserve(self, wanted: dict[str, str]) -> None:
        before = self.ledger.all()
        try:
            self.ledger.reserve("open", OPEN, wanted, self.leases)
        except (UsageError, ConflictError):
            assert self.ledger.all() == before
        else:
            assert self.ledger.reservations("open") == wanted

    @rule(tap=taps, mac=macs, fence=st.sampled_from(["a", "b"]))
    def fence(self, tap: str, mac: str, fence: str) -> None:
        def make(address: str) -> Claim:
            return Claim(network="fenced", holder=tap, mac=mac, address=address, fence=fence, inside=INSIDE)

        before = self.ledger.get("fenced", tap)
        try:
            claim = self.ledger.allocate(FENCED, {}, make, "fenced", tap)
        except CapacityError:
            assert len(self.ledger.of("fenced")) == 5
        else:
            assert before is None or claim == before

    @rule(tap=taps)
    def leave(self, tap: str) -> None:
        self.ledger.give_up(lambda claim: claim.holder == tap)
        assert self.ledger.find(tap) is None

    @rule(fence=st.sampled_from(["a", "b"]), known=st.dictionaries(macs, inner_addresses, max_size=4))
    def learn(self, fence: str, known: dict[str, str]) -> None:
        claims = [claim for claim in self.ledger.of("fenced") if claim.fence == fence]
        for holder, address in learned(claims, known).items():
            claim = self.ledger.get("fenced", holder)
            assert claim is not None
            self.ledger.replace(claim.changed(inner=address))

    @invariant()
    def no_address_has_two_holders(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for name, cidr in CIDRS.items():
            held = {claim.holder: claim.address for claim in self.ledger.of(name)}
            if name == "open":
                held |= self.leases  # by MAC: one that has both has the same, or waits for its reservation
                reserved = self.ledger.reservations(name)
                held |= {f"reserved for {mac}": a for mac, a in reserved.items() if self.leases.get(mac, a) != a}
            assert len(set(held.values())) == len(held), held
            first, last = host_range(cidr)
            assert all(first <= IPv4Address(address) <= last for address in held.values())
            assert str(gateway_of(cidr)) not in held.values()
        for fence in ("a", "b"):
            inner = [claim.inner for claim in self.ledger.of("fenced") if claim.fence == fence and claim.inner]
            assert len(set(inner)) == len(inner)


TestAddresses = Addresses.TestCase
TestAddresses.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_damaged_record_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "addresses.json"
    path.write_text('[{"network": 1}]')
    ledger = Ledger(path)
    ledger.load()
    assert ledger.all() == []
    assert "set aside" in str(ledger.problem)
    assert path.with_suffix(".damaged").exists()


@given(st.binary(max_size=60))
def test_a_record_may_hold_anything(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "addresses.json"
        path.write_bytes(content)
        ledger = Ledger(path)
        ledger.load()
        assert ledger.all() == []


def test_a_change_that_cannot_be_kept_did_not_happen(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gone" / "addresses.json")
    with pytest.raises(OSError, match="No such file"):
        ledger.reserve("open", OPEN, {MACS[0]: "10.1.0.5"}, {})
    assert ledger.all() == []


@needs_privilege
async def test_dnsmasq_and_the_ledger_never_give_an_address_twice(tmp_path: Path) -> None:
    """The real server, a small network, reservations that come and go between the leases, a restart."""
    async with Lab(tmp_path) as lab:
        group = Network(name="a", cidr="10.99.0.0/28", dhcp=True)
        await lab.networks.ensure(group)
        held: dict[str, str] = {}
        for number in range(9):
            guest = await lab.guest("a")
            mac = await guest.mac()
            if number % 3 == 1:
                with contextlib.suppress(ConflictError):
                    await lab.networks.claim_addresses("a", {mac: f"10.99.0.{number + 2}"})
            if number % 3 == 2:
                # Of somebody who has set it himself, and never asks for it.
                with contextlib.suppress(ConflictError):
                    await lab.networks.claim_addresses("a", {MACS[number % 8]: f"10.99.0.{number + 5}"})
                    held[MACS[number % 8]] = f"10.99.0.{number + 5}"
            if number == 5:
                await lab.restart()
                await lab.networks.restore([group])
            held[mac] = (await guest.dhcp())["ip"]
            assert len(set(held.values())) == len(held), held
        with pytest.raises(ConflictError, match="belongs to"):
            await lab.networks.claim_addresses("a", {MACS[0]: held[mac]})
        for wrong in ("10.99.0.1", "10.99.0.15"):
            with pytest.raises(UsageError):
                await lab.networks.claim_addresses("a", {MACS[0]: wrong})
        await lab.networks.claim_addresses("a", {MACS[0]: "10.98.0.4"})  # nobody is given what lies outside


@needs_privilege
async def test_who_sets_an_address_by_hand_gives_back_what_was_leased(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(Network(name="a", cidr="10.99.0.0/24", dhcp=True))
        guest = await lab.guest("a")
        mac = await guest.mac()
        leased = (await guest.dhcp())["ip"]
        other = "10.99.0.9" if leased != "10.99.0.9" else "10.99.0.10"
        await lab.networks.claim_addresses("a", {mac: leased})
        await lab.networks.settle_address("a", mac)
        await lab.networks.claim_addresses("a", {mac: other})
        assert (await lab.networks.leases("a"))[mac].address == leased, "it is the guest's until it has set another"
        await lab.networks.settle_address("a", mac)
        for _ in range(200):  # dnsmasq writes it down when it has read the message
            if not await lab.networks.leases("a"):
                break
            await asyncio.sleep(0.05)
        assert await lab.networks.leases("a") == {}
