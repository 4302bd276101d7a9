"""What callers are shown."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ramet.model.base import Model
from ramet.model.identity import Identity, IdentityState
from ramet.model.machine import Lineage, Machine, Stun, VmState
from ramet.model.memory import CloneMemory


class MemoryView(Model):
    """Of one VM's guest RAM, in bytes, from smaps of the RAM mapping. `unique` = Private_Clean + Private_Dirty."""

    configured_bytes: int
    resident_bytes: int
    unique_bytes: int
    shared_bytes: int
    proportional_bytes: int
    process_overhead_bytes: int
    """Of the process apart from guest RAM, each shared page divided by its users."""
    page_tables_bytes: int = 0
    """Of the process; the kernel spends them beside all of the above."""
    swapped_bytes: int = 0
    """Of guest RAM, in swap: not resident."""


class BalloonView(Model):
    """What a guest is to have of its memory, and has; bytes."""

    target_bytes: int
    """By its owner: all of it, or the memory target."""
    actual_bytes: int
    """As its driver says; all of it where the guest has none."""
    asked_by_host: int | None = None
    """What the host's guard has it do with while memory is short."""


class LayerView(Model):
    id: str
    bytes_on_disk: int
    writable: bool
    shared_by: int
    """VMs, images and moments that use it."""


class NicView(Model):
    id: str
    model: str
    mac: str
    network: str | None
    connected: bool
    addresses: tuple[str, ...] = ()


class DiskView(Model):
    id: str
    size_bytes: int
    chain: tuple[LayerView, ...]
    """Topmost first."""


class VmView(Model):
    id: str
    name: str
    uuid: str
    state: VmState
    pause_reason: str | None = None
    frozen: bool = False
    accelerator: str | None = None
    qemu_version: str | None = None
    pid: int | None = None
    memory_mib: int
    vcpus: int
    image: str | None = None
    nics: tuple[NicView, ...] = ()
    disks: tuple[DiskView, ...] = ()
    lineage: Lineage | None = None
    memory: MemoryView | None = None
    stuns: tuple[Stun, ...] = ()
    machine: Machine
    created_at: float
    started_at: float | None = None
    busy_with: str | None = None
    identity: Identity = Identity()
    expires_at: float | None = None
    balloon: BalloonView | None = None
    """Of one VM that runs; not in lists, for QEMU is asked for it."""


class CloneTimings(Model):
    """Milliseconds. `total` runs from the request accepted to `cont` acknowledged."""

    check: float = 0.0
    prepare: float = 0.0
    stun: float = 0.0
    fork: float = 0.0
    qemu: float = 0.0
    load: float = 0.0
    running: float = 0.0
    total: float = 0.0
    identity: float = 0.0
    """From the request accepted to the guest's acknowledgement; 0 for a bare clone."""
    network: float = 0.0
    """From the request accepted to an address on the network; 0 when there was none."""


class CloneResult(Model):
    """One clone of a request. Of a partial failure the good ones stay, and each says for itself how it went."""

    name: str
    id: str
    task: str
    timings_ms: CloneTimings
    warnings: tuple[str, ...] = ()
    ok: bool = True
    """It runs. False: it was taken back, and `error` says why."""
    error: dict[str, Any] | None = None
    identity: IdentityState = IdentityState.BARE
    problem: str | None = None
    """Why it is not on the network although that was asked."""
    hostname: str | None = None
    addresses: dict[str, str] = Field(default_factory=dict)
    """NIC id -> IPv4 address."""
    from_pool: bool = False
    memory: CloneMemory | None = None
    """Of the whole request, on the host: the same for all of its clones."""


class CloneForecast(Model):
    """The answer of a dry run."""

    ok: bool = True
    workflow: str
    forecast_stun_ms: float | None
    names: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class ExecResult(Model):
    exit_code: int
    signal: int | None = None
    stdout_base64: str = ""
    stderr_base64: str = ""
    truncated: bool = False


class CheckView(Model):
    """One line of `ramet doctor`."""

    name: str
    status: str
    """'ok', 'warning' or 'missing'."""
    found: str
    remedy: str | None = None


class RepairView(Model):
    """What `ramet doctor --repair` made of an inventory."""

    problem: str | None
    """What was wrong; None when nothing was, and nothing was changed."""
    aside: str | None
    """The folder with the files as they were."""
    kept: dict[str, int]
    """Records by kind."""
    vms: tuple[str, ...]
    lost: tuple[str, ...]
    altered: tuple[str, ...]
    layers_aside: tuple[str, ...]
    """Layers that nothing in the new inventory refers to: in the folder, too."""


class HostView(Model):
    version: str
    state_dir: str
    pid: int
    uid: int
    privileged: bool
    qemu_version: str | None
    accelerator: str | None
    vms_total: int
    vms_on: int
    settings: dict[str, Any]


class TreeNode(Model):
    id: str
    name: str
    state: str
    workflow: str | None = None
    children: tuple[TreeNode, ...] = ()
