"""What a VM is made of, and what is remembered about one. Values only: nothing here opens or starts anything."""

from __future__ import annotations

import uuid as uuid_module
from enum import StrEnum
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ramet.model.base import Model
from ramet.model.identity import Identity
from ramet.model.units import Cidr, Mac, Name, new_id, new_mac
from ramet.model.vm_ids import new_vm_id

USER_NETWORK = "user"
"""The port group name that stands for QEMU's user-mode networking, which needs no privilege."""

DEFAULT_NETWORK = "default"
"""The port group that exists from the start where the daemon may make one."""


class VmState(StrEnum):
    """States of the lifecycle; the transitions between them stand in ``ramet.machine.lifecycle``."""

    OFF = "off"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"  # QEMU stopped the guest by itself: io-error, panic, internal error
    FROZEN = "frozen"  # on, held at one instruction, a moment is kept
    SUSPENDED = "suspended"  # its whole state is on disk, no process
    STOPPING = "stopping"
    READY = "ready"  # a loaded clone that has not executed yet: a pool keeps it for whoever asks next


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


class NicModel(StrEnum):
    VIRTIO = "virtio"
    E1000E = "e1000e"
    VMXNET3 = "vmxnet3"


class Display(StrEnum):
    NONE = "none"
    VGA = "vga"
    VIRTIO = "virtio"


class Accelerator(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Inside(Model):
    """The network that a fenced NIC believes to be in: its source's. It is played inside the fence."""

    network: Name
    """The name of that port group, which may be gone; its gateway's MAC address follows from it."""
    cidr: Cidr | None = None
    """None: of a port group without a network, which has no gateway either."""


class Nic(Model):
    """A network card. `network` is a port group's name, USER_NETWORK, or None for a tap without a bridge."""

    id: str = Field(pattern=r"^net\d+$")
    model: NicModel = NicModel.VIRTIO
    mac: Mac = Field(default_factory=new_mac)
    network: str | None = DEFAULT_NETWORK
    connected: bool = True
    fence: Name | None = None
    """On a fenced port group: the name of the fence, shared with others; None is the VM's own."""
    inside: Inside | None = None
    """On a fenced port group: the network it came from."""

    @property
    def index(self) -> int:
        """The number in its id, which its tap and its slot are named after."""
        return int(self.id.removeprefix("net"))

    @property
    def is_user_mode(self) -> bool:
        return self.network == USER_NETWORK


class Disk(Model):
    """A disk of a VM: the id of its topmost, writable layer, and the size the guest sees."""

    id: str = Field(pattern=r"^(disk\d+|efivars)$")
    layer: str
    size_bytes: int = Field(gt=0)

    @property
    def is_efivars(self) -> bool:
        return self.id == "efivars"

    @property
    def index(self) -> int:
        """The number in its id, which its slot is named after; the variables of UEFI have none."""
        return int(self.id.removeprefix("disk"))


class KernelBoot(Model):
    """Direct kernel boot: absolute host paths of files that belong to an image, and the command line."""

    kernel: str
    initrd: str | None = None
    append: str = ""


class Machine(Model):
    """The hardware of a VM, as configured."""

    name: Name
    uuid: str = Field(default_factory=lambda: str(uuid_module.uuid4()))
    memory_mib: int = Field(default=512, ge=32, le=1 << 20)
    vcpus: int = Field(default=1, ge=1, le=64)
    firmware: Firmware = Firmware.BIOS
    kernel: KernelBoot | None = None
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    display: Display = Display.NONE
    cdroms: tuple[str, ...] = Field(default=(), max_length=2)
    extra_config: dict[str, str] = Field(default_factory=dict)
    autostart: bool = False
    accelerator: Accelerator = Accelerator.AUTO
    machine_type: str | None = None
    """Versioned QEMU machine type; None until the first start settles it."""
    cpu_model: str | None = None
    cpu_limit_percent: int | None = Field(default=None, ge=1)
    """Of one core; None is no limit."""
    memory_target_mib: int | None = Field(default=None, ge=32)
    """The balloon's target; None leaves the guest all of its memory."""
    image: str | None = None
    """The name of the image it was made from, for people."""

    @field_validator("uuid")
    @classmethod
    def _uuid(cls, value: str) -> str:
        return str(uuid_module.UUID(value))

    @field_validator("extra_config")
    @classmethod
    def _keys(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            check_extra_config(key, text)
        return {key.lower(): text for key, text in value.items()}

    @model_validator(mode="after")
    def _distinct(self) -> Machine:
        for what, names in (
            ("disk", [d.id for d in self.disks]),
            ("NIC", [n.id for n in self.nics]),
            ("MAC address", [n.mac for n in self.nics]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"the same {what} stands twice")
        if len(self.nics) > 8 or len(self.disks) > 16:
            raise ValueError("a VM has at most 8 NICs and 16 disks")
        return self


def check_extra_config(key: str, value: str) -> None:
    """Keys like guestinfo.x; both sides bounded, as the original bounds guest-visible keys (64 KiB a value)."""
    if not 0 < len(key) <= 256 or any(c.isspace() or c == "=" or not c.isprintable() for c in key):
        raise ValueError(f"{key[:40]!r} is not a usable configuration key")
    if len(value.encode()) > 65536:
        raise ValueError(f"the value of {key!r} is larger than 64 KiB")


class Process(Model):
    """A QEMU process as it is found again after a restart: a pid alone could have been reused."""

    pid: int
    start_ticks: int
    """Field 22 of /proc/PID/stat."""
    boot_id: str
    accelerator: Accelerator
    qemu_version: str
    qemu_build: str
    """Build id of the binary that runs: a fork must meet the same binary on disk."""
    launched: bool = True
    """False: forked from another VM's process: it inherited that one's seccomp filter, and has no -kernel."""


class Lineage(Model):
    """Where a clone came from: a record for people, never a dependency."""

    source_id: str
    source_name: str
    moment_id: str
    workflow: Literal["live", "frozen"]
    at: float
    """Unix time."""


class Stun(Model):
    """One measured stun of a source."""

    at: float
    total_ms: float
    stop_ms: float
    snapshot_ms: float
    state_ms: float
    fork_ms: float
    resume_ms: float
    resident_bytes: int


class Vm(Model):
    """Everything remembered about one VM: the unit of the inventory."""

    id: str = Field(default_factory=new_vm_id)
    machine: Machine
    state: VmState = VmState.OFF
    pause_reason: str | None = None
    process: Process | None = None
    lineage: Lineage | None = None
    lineage_id: str = ""
    """Sharing domain: the id of the first ancestor of the family."""
    moment_id: str | None = None
    """The moment a frozen VM holds."""
    stuns: tuple[Stun, ...] = ()
    """The last few, newest last."""
    cloned_once: bool = False
    created_at: float = 0.0
    started_at: float | None = None
    network_overrides: dict[str, str] = Field(default_factory=dict)
    generation: str = Field(default_factory=lambda: str(uuid_module.uuid4()))
    """The VM generation id that its hardware shows: a clone has another one than its source."""
    identity: Identity = Identity()
    expires_at: float | None = None
    """Unix time at which the VM is removed."""
    request_key: str | None = None
    """The key of the request that cloned it: asked again after a crash, that request finds what it has made."""
    registered: bool = True
    """False: taken out of the inventory, with everything kept that it is put back with."""
    provisional: bool = False
    """A copy that is still being reshaped, and nobody's VM before that is done. A start that finds one removes it."""
    pool_of: str | None = None
    """The id of the frozen VM whose pool it waits in, loaded and paused; nobody's VM until it is taken."""

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def is_on(self) -> bool:
        return self.process is not None

    @property
    def frozen(self) -> bool:
        return self.state is VmState.FROZEN

    @property
    def is_shown(self) -> bool:
        """Users see it, and nobody else can have its name."""
        return self.pool_of is None and self.registered and not self.provisional

    @property
    def is_pooled(self) -> bool:
        return self.pool_of is not None


class Moment(Model):
    """A held point in a VM's life. RAM is held by `holder` (a process of its own) or by the frozen source itself."""

    id: str = Field(default_factory=new_id)
    vm_id: str
    machine: Machine
    """The hardware at that point; its disks name the read-only layers of the moment."""
    layers: dict[str, str]
    """Disk id -> the immutable layer that clones start from."""
    pending_rpc_hex: str = ""
    """Bytes of guest RPC that the guest had sent and nobody had answered."""
    holder: Process | None = None
    accelerator: Accelerator
    qemu_build: str
    at: float
