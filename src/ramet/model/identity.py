"""What makes a clone a machine of its own: what is asked of the guest, and what the guest acknowledged.

Values only. The host fills in a `Plan` for every clone, the guest carries it out before its links come up, and says
what it set; `Identity` is what stays in the record.
"""

from __future__ import annotations

import ipaddress
import re
import uuid as uuid_module
from enum import StrEnum
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ramet.model.base import Model
from ramet.model.units import Mac

_LABEL = re.compile(r"^[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$")
DHCP = "dhcp"
KEEP = "keep"


def check_hostname(name: str) -> str:
    """A DNS label, as hostnames are; raises ValueError."""
    if not _LABEL.fullmatch(name):
        raise ValueError(f"{name!r} is not a hostname: letters, digits and '-' (not first or last), at most 63")
    return name.lower()


def hostname_from(name: str) -> str:
    """The hostname a VM of that name gets: what DNS does not allow becomes '-'."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:63].rstrip("-") or "clone"


def check_domain(domain: str) -> str:
    if len(domain) > 200 or not all(_LABEL.fullmatch(label) for label in domain.rstrip(".").split(".")):
        raise ValueError(f"{domain!r} is not a domain name like example.org")
    return domain.rstrip(".").lower()


class Part(StrEnum):
    """The parts of an identity, in the order in which they are applied."""

    RANDOM = "random"
    CLOCK = "clock"
    TCP = "tcp"
    NICS = "nics"
    ADDRESS = "address"
    HOSTNAME = "hostname"
    MACHINE_ID = "machine-id"
    SSH_KEYS = "ssh-keys"
    HOOKS = "hooks"


class TcpPolicy(StrEnum):
    """What becomes of the TCP connections that a clone's guest has from its source."""

    RESET = "reset"
    """Its programs are told at once that the connection is gone."""
    DROP = "drop"
    """They learn it when they time out; nothing goes out meanwhile."""
    KEEP = "keep"
    """Left alone, for fences and for guests that keep their address."""


class NicAddress(Model):
    """One NIC's address: 'dhcp', 'keep' (what the guest has), or an address with its prefix like 10.0.0.5/24."""

    address: str = DHCP
    gateway: str | None = None

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        if value in (DHCP, KEEP):
            return value
        if "/" not in value:
            raise ValueError(f"{value!r} lacks its prefix length: write it like 10.0.0.5/24")
        return str(ipaddress.IPv4Interface(value))

    @field_validator("gateway")
    @classmethod
    def _gateway(cls, value: str | None) -> str | None:
        return value if value is None else str(ipaddress.IPv4Address(value))

    @property
    def is_static(self) -> bool:
        return self.address not in (DHCP, KEEP)


class Customization(Model):
    """Values that a user sets for clones. In text, {n} counts the clones and {name} is the clone's name."""

    hostname: str | None = None
    domain: str | None = None
    dns: tuple[str, ...] = Field(default=(), max_length=4)
    nics: dict[str, NicAddress] = Field(default_factory=dict)
    """By NIC id, like 'net0'."""

    @field_validator("hostname")
    @classmethod
    def _hostname(cls, value: str | None) -> str | None:
        return value if value is None else check_hostname(value)

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str | None) -> str | None:
        return value if value is None else check_domain(value)

    @field_validator("dns")
    @classmethod
    def _dns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ipaddress.ip_address(server)) for server in value)


class PlannedNic(Model):
    """A NIC as the guest is to set it up. `old_mac` is how the guest knows it, from its source."""

    id: str
    mac: Mac
    old_mac: Mac
    address: str = DHCP
    gateway: str | None = None

    @property
    def is_static(self) -> bool:
        return self.address not in (DHCP, KEEP)


class Plan(Model):
    """What one clone's guest is asked to do before its links come up. Complete: the guest decides nothing."""

    generation: str = Field(default_factory=lambda: str(uuid_module.uuid4()))
    """Of this VM's life: another one after every clone. The guest's generation file, and the VM generation id."""
    parts: tuple[Part, ...] = tuple(Part)
    tcp: TcpPolicy = TcpPolicy.RESET
    hostname: str
    domain: str | None = None
    dns: tuple[str, ...] = ()
    nics: tuple[PlannedNic, ...] = ()
    thaw_hooks: bool = False
    """The source ran its freeze hooks before the moment: the matching ones are run here too."""
    thaw_file_systems: bool = False
    """They were frozen when the moment was taken: the agent must thaw them before anything else."""
    hooks_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    timeout_s: float = Field(default=120.0, gt=0, le=7200)
    """For the acknowledgement, from when the guest is asked: of many clones a few are at the same time."""

    def has(self, part: Part) -> bool:
        return part in self.parts


class Acknowledgement(Model):
    """What the guest says it set: hostile input, bounded and typed where it is read (``ramet.guest.identity``)."""

    generation: str
    done: tuple[Part, ...] = ()
    random: Literal["reseeded", "vmgenid", ""] = ""
    clock_error_ms: float | None = None
    """The guest's clock against the host's, when it was set."""
    hostname: str = ""
    machine_id: str = ""
    ssh_keys: dict[str, str] = Field(default_factory=dict)
    """Kind -> SHA256 fingerprint; slower kinds follow after the acknowledgement."""
    addresses: dict[str, str] = Field(default_factory=dict)
    """NIC id -> address/prefix that was set; DHCP's comes later."""
    tcp_killed: int = 0
    warnings: tuple[str, ...] = ()
    took_ms: dict[str, float] = Field(default_factory=dict)
    """Part -> milliseconds in the guest."""


class IdentityState(StrEnum):
    BARE = "bare"  # none was asked for
    PENDING = "pending"  # asked, not acknowledged: links are held down
    ACKNOWLEDGED = "acknowledged"
    FAILED = "failed"  # the guest did not acknowledge: links are held down


class Identity(Model):
    """What a VM's record says of its identity."""

    state: IdentityState = IdentityState.BARE
    plan: Plan | None = None
    acknowledgement: Acknowledgement | None = None
    problem: str | None = None

    @model_validator(mode="after")
    def _has_a_plan(self) -> Identity:
        if self.plan is None and self.state in (IdentityState.PENDING, IdentityState.ACKNOWLEDGED):
            raise ValueError(f"an identity that is {self.state.value} has a plan")
        return self

    @property
    def holds_links_down(self) -> bool:
        """Fail closed: a clone that did not acknowledge an identity of its own is on no network."""
        return self.state in (IdentityState.PENDING, IdentityState.FAILED)
