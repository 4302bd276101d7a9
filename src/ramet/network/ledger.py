"""Who holds which address of which port group: reservations, and the translated addresses of fences.

What dnsmasq leased by itself stands in its lease file, and is asked for with every decision (`leased`): one address
never has two holders, whichever way they came by it. Claims are on disk before they are used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ramet.errors import CapacityError, ConflictError, UsageError
from ramet.model.base import Model
from ramet.model.machine import Inside
from ramet.model.units import Mac
from ramet.network.addresses import host_range


class Claim(Model):
    """An address of a port group that belongs to one holder until it is given up."""

    network: str
    holder: str
    """A tap's name, or a MAC address for reservations."""
    mac: Mac
    address: str
    """The address by which others know the holder: of a fenced NIC, the translated one."""
    fence: str | None = None
    """The fence's name; None for a reservation."""
    inside: Inside | None = None
    inner: str | None = None
    """The address that a fenced guest itself uses; None until it is known."""


_CLAIMS = TypeAdapter(tuple[Claim, ...])


class Ledger:
    """The claims of all port groups. Not thread-safe; every change is on disk when the method returns."""

    def __init__(self, path: Path | None = None) -> None:
        """`path` None keeps them in memory. Raises OSError; a damaged file is set aside, and `problem` says so."""
        self._path = path
        self._claims: dict[tuple[str, str], Claim] = {}
        self.problem: str | None = None

    def load(self) -> None:
        if self._path is None:
            return
        try:
            claims = _CLAIMS.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return
        except ValidationError:
            aside = self._path.with_suffix(".damaged")
            self._path.replace(aside)
            self.problem = f"The record of addresses was damaged; it was set aside as {aside.name}."
            return
        self._claims = {(claim.network, claim.holder): claim for claim in claims}

    def all(self) -> list[Claim]:
        return list(self._claims.values())

    def of(self, network: str) -> list[Claim]:
        return [claim for claim in self._claims.values() if claim.network == network]

    def get(self, network: str, holder: str) -> Claim | None:
        return self._claims.get((network, holder))

    def find(self, holder: str) -> Claim | None:
        """The claim of a holder on whichever port group."""
        return next((claim for claim in self._claims.values() if claim.holder == holder), None)

    def claim(self, claim: Claim, cidr: str, leased: Mapping[str, str]) -> Claim:
        """Take an address of one's choice; what the holder had on this port group is given up.

        `leased`: MAC -> address of what dnsmasq handed out. Raises UsageError for an address that is no guest's,
        ConflictError for one that another has.
        """
        first, last = host_range(cidr)
        if not first <= IPv4Address(claim.address) <= last:
            raise UsageError(
                f"{claim.address} is not an address for guests of port group {claim.network!r}.",
                hint=f"They are {first} to {last}.",
            )
        self._check_free(claim, leased)
        with self._change():
            self._claims[claim.network, claim.holder] = claim
        return claim

    def _check_free(self, claim: Claim, leased: Mapping[str, str]) -> None:
        others = [other.holder for other in self.of(claim.network) if other.address == claim.address]
        others += [mac for mac, address in leased.items() if address == claim.address and mac != claim.mac]
        taken_by = next((holder for holder in others if holder != claim.holder), None)
        if taken_by is not None:
            raise ConflictError(
                f"{claim.address} of port group {claim.network!r} belongs to {taken_by} already.",
                hint="Choose another address.",
            )

    def allocate(
        self, cidr: str, leased: Mapping[str, str], make: Callable[[str], Claim], network: str, holder: str
    ) -> Claim:
        """The holder's claim, or a new one on the first free address. CapacityError when all are taken."""
        present = self.get(network, holder)
        if present is not None and IPv4Address(present.address) in IPv4Network(cidr):
            return present
        taken = {claim.address for claim in self.of(network)} | set(leased.values())
        first, last = host_range(cidr)
        for number in range(int(first), int(last) + 1):
            if str(address := IPv4Address(number)) not in taken:
                return self.claim(make(str(address)), cidr, leased)
        raise CapacityError(f"Port group {network!r} has no address left.", hint="Remove VMs from it.")

    def reserve(self, network: str, cidr: str, wanted: Mapping[str, str], leased: Mapping[str, str]) -> None:
        """Exactly these reservations (MAC -> address) from now on; all of them, or an error and those of before."""
        scratch = Ledger()
        scratch._claims = {key: claim for key, claim in self._claims.items() if claim.network != network or claim.fence}
        for mac, address in wanted.items():
            scratch.claim(Claim(network=network, holder=mac, mac=mac, address=address), cidr, leased)
        with self._change():
            self._claims = scratch._claims

    def reservations(self, network: str) -> dict[str, str]:
        """MAC -> address."""
        return {claim.mac: claim.address for claim in self.of(network) if claim.fence is None}

    def replace(self, claim: Claim) -> None:
        """The same holder and address, with something else known about it."""
        before = self._claims[claim.network, claim.holder]
        if before != claim:
            assert before.address == claim.address
            with self._change():
                self._claims[claim.network, claim.holder] = claim

    def give_up(self, wanted: Callable[[Claim], bool]) -> list[Claim]:
        """Drop the claims for which `wanted` is true; they are returned."""
        gone = [claim for claim in self._claims.values() if wanted(claim)]
        if gone:
            with self._change():
                for claim in gone:
                    del self._claims[claim.network, claim.holder]
        return gone

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """On disk, or as before."""
        before = dict(self._claims)
        try:
            yield
            self._save()
        except BaseException:
            self._claims = before
            raise

    def _save(self) -> None:
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        # Not synced: a power cut that could lose it takes every fence and every guest with it.
        new.write_text(json.dumps([claim.model_dump(mode="json") for claim in self.all()], indent=1))
        new.replace(self._path)
