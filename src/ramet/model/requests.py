"""What callers ask for: validated at the edge, the same for the API, the client and the surfaces to come."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ramet.model.base import Model
from ramet.model.machine import DEFAULT_NETWORK, Accelerator, Display, Firmware, NicModel, check_extra_config
from ramet.model.units import Cidr, Mac, Name


class NicRequest(Model):
    network: str | None = DEFAULT_NETWORK
    model: NicModel = NicModel.VIRTIO
    mac: Mac | None = None
    connected: bool = True


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
    set_config: dict[str, str] = Field(default_factory=dict)
    unset_config: tuple[str, ...] = ()


class NicChange(Model):
    """A change of one NIC, live or at clone time. `network` '' means: no port group."""

    id: str = Field(pattern=r"^net\d+$")
    network: str | None = None
    connected: bool | None = None
    mac: Mac | None = None


class AddDisk(Model):
    size_mib: int = Field(ge=1)


class GrowDisk(Model):
    size_mib: int = Field(ge=1)


class ExportDisk(Model):
    path: str
    format: Literal["qcow2", "raw", "vmdk"] = "qcow2"


class CloneVm(Model):
    """Clones of one VM, all from the same instant."""

    names: tuple[Name, ...] = Field(min_length=1, max_length=256)
    connect: bool = False
    disconnect_nics: bool = False
    nics: tuple[NicChange, ...] = ()
    uuid: str | None = None
    extra_config: dict[str, str] = Field(default_factory=dict)
    dry_run: bool = False
    max_stun_ms: float | None = Field(default=None, gt=0)

    @field_validator("extra_config")
    @classmethod
    def _config(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            check_extra_config(key, text)
        return {key.lower(): text for key, text in value.items()}


class CreateNetwork(Model):
    name: Name
    cidr: Cidr | None = None
    dhcp: bool = False
    nat: bool = False
    isolated: bool = False


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
