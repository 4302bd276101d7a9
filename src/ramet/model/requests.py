"""What callers ask for: validated at the edge, the same for the API, the client and the surfaces to come."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ramet.model.base import Model
from ramet.model.host import EgressRule
from ramet.model.identity import Part, TcpPolicy
from ramet.model.machine import DEFAULT_NETWORK, Accelerator, Display, Firmware, NicModel, check_extra_config
from ramet.model.units import Cidr, Mac, Name

MAX_CLONES = 256
"""Of one request."""
DEFAULT_HOOKS_S = 30.0


class NicRequest(Model):
    network: str | None = DEFAULT_NETWORK
    model: NicModel = NicModel.VIRTIO
    mac: Mac | None = None
    connected: bool = True
    fence: Name | None = None
    """On a fenced port group: the fence to share with others; None is one of the VM's own."""


class DiskRequest(Model):
    """A new empty disk of `size_mib`, or a copy-on-write overlay of an image's first disk."""

    size_mib: int | None = Field(default=None, ge=1)
    image: str | None = None


class CreateVm(Model):
    name: Name
    image: str | None = None
    memory_mib: int | None = Field(default=None, ge=32, le=1 << 20)
    """None: the image's own default, else 512."""
    vcpus: int = Field(default=1, ge=1, le=64)
    firmware: Firmware | None = None
    nics: tuple[NicRequest, ...] | None = None
    """None: one virtio NIC on the default port group."""
    disks: tuple[DiskRequest, ...] = ()
    """After the image's own."""
    display: Display = Display.NONE
    cdroms: tuple[str, ...] = ()
    """Absolute paths of ISO files."""
    ssh_keys: tuple[str, ...] = ()
    user_data: str | None = None
    """A cloud-init user-data document; a NoCloud seed is made when it, or a key, is given."""
    extra_config: dict[str, str] = Field(default_factory=dict)
    autostart: bool = False
    accelerator: Accelerator = Accelerator.AUTO
    cpu_limit_percent: int | None = Field(default=None, ge=1)
    tpm: bool = False
    passthrough: tuple[str, ...] = ()
    start: bool = False


class StopVm(Model):
    hard: bool = False
    timeout_s: float = Field(default=60.0, gt=0, le=3600)


class ChangeVm(Model):
    """Fields left None stay. Memory and vCPUs change only while the VM is off."""

    name: Name | None = None
    memory_mib: int | None = Field(default=None, ge=32, le=1 << 20)
    vcpus: int | None = Field(default=None, ge=1, le=64)
    autostart: bool | None = None
    cpu_limit_percent: int | None = Field(default=None, ge=0)
    """0 lifts the limit."""
    memory_target_mib: int | None = Field(default=None, ge=0)
    """The balloon's target; 0 gives the guest all of its memory."""
    ttl_s: float | None = Field(default=None, ge=0, le=10 * 365 * 86400)
    """From now on; 0 lets the VM live."""
    set_config: dict[str, str] = Field(default_factory=dict)
    unset_config: tuple[str, ...] = ()


class NicChange(Model):
    """A change of one NIC, live or at clone time. `network` '' means: no port group."""

    id: str = Field(pattern=r"^net\d+$")
    network: str | None = None
    connected: bool | None = None
    mac: Mac | None = None
    fence: Name | None = None
    """On a fenced port group: the fence to share with others; None is one of the VM's own."""


class AddDisk(Model):
    size_mib: int = Field(ge=1)


class GrowDisk(Model):
    size_mib: int = Field(ge=1)


class ExportDisk(Model):
    path: str
    format: Literal["qcow2", "raw", "vmdk"] = "qcow2"


class CloneVm(Model):
    """Clones of one VM, all from the same instant. Either `names`, or `name` with {n} in it and `count`."""

    names: tuple[Name, ...] = Field(default=(), max_length=MAX_CLONES)
    name: str | None = Field(default=None, max_length=80)
    """A template like 'web-{n}', '{n:03}' counts 001, 002, …"""
    count: int = Field(default=1, ge=1, le=MAX_CLONES)
    first: int = Field(default=1, ge=0, le=1_000_000)
    """Where {n} begins."""
    key: str | None = Field(default=None, min_length=1, max_length=128)
    """Idempotency: the same key again answers with the task of the first time."""
    ttl_s: float | None = Field(default=None, gt=0, le=10 * 365 * 86400)
    """The clones are removed when it is over."""

    bare: bool = False
    """No identity of its own: the customer customizes. Links stay down unless `connect`."""
    without: tuple[Part, ...] = ()
    """Parts of the identity that are left out."""
    tcp: TcpPolicy = TcpPolicy.RESET
    customize: dict[str, str] = Field(default_factory=dict, max_length=64)
    """hostname, domain, dns, address, gateway, netN.address, netN.gateway; {n} and {name} stand for the clone's."""
    hooks_timeout_s: float = Field(default=DEFAULT_HOOKS_S, gt=0, le=3600)
    identity_timeout_s: float = Field(default=120.0, gt=0, le=7200)
    wait_network_s: float = Field(default=10.0, ge=0, le=600)
    """How long the task waits, after the links are up, until each clone has an address. Not to have one is no error."""

    quiesce: bool = False
    """Freeze the guest's file systems during the stun, so that the disks' files are whole as well."""
    freeze_hooks: bool = True
    """Run the guest's /etc/ramet/freeze.d before, and the matching ones after, in source and clones."""
    freeze_hooks_timeout_s: float = Field(default=30.0, gt=0, le=3600)

    connect: bool = False
    disconnect_nics: bool = False
    nics: tuple[NicChange, ...] = ()
    add_nics: tuple[NicRequest, ...] = Field(default=(), max_length=8)
    """Plugged into the running clone."""
    add_disks: tuple[AddDisk, ...] = Field(default=(), max_length=16)
    cpu_limit_percent: int | None = Field(default=None, ge=0)
    """0 lifts the source's limit; None keeps it."""
    memory_target_mib: int | None = Field(default=None, ge=32)
    """The balloon's target: memory above it is taken from the guest."""
    uuid: str | None = None
    extra_config: dict[str, str] = Field(default_factory=dict)
    pool: bool = True
    """Take ready clones from the source's pool where there are some."""
    dry_run: bool = False
    max_stun_ms: float | None = Field(default=None, gt=0)

    @field_validator("extra_config")
    @classmethod
    def _config(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            check_extra_config(key, text)
        return {key.lower(): text for key, text in value.items()}

    @model_validator(mode="after")
    def _named(self) -> CloneVm:
        if bool(self.names) == bool(self.name):
            raise ValueError("give either names, or a name with {n} in it and a count")
        if self.names and self.count not in (1, len(self.names)):
            raise ValueError(f"{len(self.names)} names are given, and a count of {self.count}")
        if self.name and self.count > 1 and "{n" not in self.name:
            raise ValueError(f"the name {self.name!r} needs {{n}} in it: {self.count} clones cannot share one name")
        if self.connect and self.disconnect_nics:
            raise ValueError("connect and disconnect_nics exclude each other")
        if self.bare and self.customize:
            raise ValueError("a bare clone is not customized: leave out bare, or the values")
        if not self.bare and self.hooks_timeout_s > max(self.identity_timeout_s, DEFAULT_HOOKS_S):
            raise ValueError(
                f"hooks are a part of the identity, which is over after {self.identity_timeout_s:g} s: "
                f"their {self.hooks_timeout_s:g} s need an identity timeout that is longer"
            )
        return self

    @property
    def total(self) -> int:
        """How many clones are asked for."""
        return len(self.names) or self.count


class CopyVm(Model):
    """A copy of a VM: another machine, that is off, with the same disks. Of one that runs they are as after a power
    cut."""

    name: Name
    linked: bool = True
    """The copy's disks begin with its source's layers, which nobody writes to from then on. False: with a copy of them
    that shares nothing."""
    set_config: dict[str, str] = Field(default_factory=dict)
    memory_mib: int | None = Field(default=None, ge=32, le=1 << 20)
    vcpus: int | None = Field(default=None, ge=1, le=64)
    start: bool = False


class RegisterVm(Model):
    """A VM that was unregistered comes back."""

    ref: str = Field(min_length=1, max_length=64)
    """Its id, or its name where no other that was unregistered has that."""
    name: Name | None = None
    """From now on; else the one that it had."""


class CreateNetwork(Model):
    name: Name
    cidr: Cidr | None = None
    dhcp: bool = False
    nat: bool = False
    isolated: bool = False
    fenced: bool = False
    uplink: str | None = None
    egress_default: Literal["allow", "deny"] = "allow"
    egress: tuple[EgressRule, ...] = ()


class ChangeNetwork(Model):
    """A port group in use changes at once. Fields left None stay; rules are removed before others are added."""

    dhcp: bool | None = None
    nat: bool | None = None
    isolated: bool | None = None
    egress_default: Literal["allow", "deny"] | None = None
    clear_rules: bool = False
    remove_rules: tuple[EgressRule, ...] = ()
    add_rules: tuple[EgressRule, ...] = ()


class BuildImage(Model):
    recipe: Literal["micro", "debian"]
    name: Name | None = None
    size_mib: int = Field(default=4096, ge=1024)
    packages: tuple[str, ...] = ()
    force: bool = False


class ImportImage(Model):
    path: str
    name: Name | None = None
    firmware: Firmware = Firmware.BIOS


class Exec(Model):
    """A command in the guest, by the guest agent. `argv[0]` is looked up by the guest."""

    argv: tuple[str, ...] = Field(min_length=1)
    stdin_base64: str | None = None
    timeout_s: float = Field(default=60.0, gt=0, le=86400)
    env: dict[str, str] = Field(default_factory=dict)
