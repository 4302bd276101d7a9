"""May this VM run here? Decided from what the VMs that run may still want, by one of two policies.

A VM's guest RAM becomes its own only as it writes, so that more can be promised than there is. How far that goes is the
host's policy:

    worst-case   every guest that can write may make all of its memory its own. Nothing that was admitted ever runs out.
    measured     each is expected to grow as it did lately, and by no less than a floor. Hundreds of clones fit, and
                 when they all diverge at once the host's guard has to act.

Here are numbers only: no process, no clock. `Admission` is asked before anything is started or cloned, and before pages
that are merged are unmerged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ramet.errors import CapacityError
from ramet.memory.host import available_memory_bytes
from ramet.model.units import MIB, format_bytes

CLONE_OVERHEAD_BYTES: Final = 48 * MIB
"""A fresh QEMU's own memory, translation buffers included, before its guest diverges."""
DIVERGENCE: Final = 0.15
"""Of guest memory: what a young clone is expected to write."""
BOOTING: Final = 0.5
"""Of guest memory: what a guest that was started a moment ago is expected to write."""
SETTLED_GROWTH: Final = 0.03
"""Of guest memory: what every guest that runs is expected to write beside, however quiet it was."""
HORIZON_S: Final = 300.0
"""How far ahead a growth that was measured is drawn; and for how long a VM is young."""
RESERVE_BYTES: Final = 512 * MIB


class Policy(StrEnum):
    WORST_CASE = "worst-case"
    MEASURED = "measured"


@dataclass(frozen=True)
class Tenant:
    """A VM that is on, as it was measured last. Bytes; all 0 until then."""

    id: str
    lineage_id: str
    configured: int
    unique: int = 0
    proportional: int = 0
    """Unique, and its part of what is shared: Pss."""
    resident: int = 0
    writes: bool = True
    """Its guest executes, or may any moment; that of a frozen VM does not."""
    is_clone: bool = False
    age_s: float = 0.0
    growth_per_s: float = 0.0
    """Bytes a second that became its own, lately."""


def growth(policy: Policy, tenant: Tenant) -> int:
    """Bytes that the host may have to give this VM besides what it has."""
    if policy is Policy.WORST_CASE:
        # A frozen VM writes nothing, but when its clones have written everything, all that it has is its alone.
        most = tenant.configured if tenant.writes else tenant.resident
        return max(0, most - tenant.proportional)
    if not tenant.writes:
        return 0
    drawn = int(tenant.growth_per_s * HORIZON_S)
    return min(max(drawn, _floor(tenant)), max(0, tenant.configured - tenant.unique))


def _floor(tenant: Tenant) -> int:
    settled = int(SETTLED_GROWTH * tenant.configured)
    if tenant.age_s >= HORIZON_S:
        return settled
    share = DIVERGENCE if tenant.is_clone else BOOTING
    return max(settled, int(share * tenant.configured) - tenant.unique)


def clone_need(policy: Policy, configured: int, siblings: Iterable[Tenant] = ()) -> int:
    """Bytes that one more clone will want: its process, and what it makes its own. `siblings`: its lineage."""
    if policy is Policy.WORST_CASE:
        return CLONE_OVERHEAD_BYTES + configured
    clones = [tenant for tenant in siblings if tenant.is_clone and tenant.writes]
    like_them = max((int(one.growth_per_s * HORIZON_S) for one in clones), default=0)
    like_them += sum(one.unique for one in clones) // max(1, len(clones))
    return CLONE_OVERHEAD_BYTES + min(configured, max(like_them, int(DIVERGENCE * configured)))


class Admission:
    """One a host. `tenants` is set by the host once it knows its VMs; until then nothing is promised to anybody."""

    def __init__(
        self,
        policy: Policy = Policy.MEASURED,
        reserve_bytes: int = RESERVE_BYTES,
        available: Callable[[], int] = available_memory_bytes,
    ) -> None:
        self.policy = policy
        self.reserve_bytes = reserve_bytes
        self.available = available
        self.tenants: Callable[[], Iterable[Tenant]] = tuple

    def promised_bytes(self) -> int:
        """What the VMs that are on may still want, all together."""
        return sum(growth(self.policy, tenant) for tenant in self.tenants())

    def clone_need(self, lineage_id: str, configured: int) -> int:
        """Of one clone, bytes."""
        return clone_need(self.policy, configured, (one for one in self.tenants() if one.lineage_id == lineage_id))

    def check_start(self, name: str, memory_bytes: int) -> None:
        """A guest that boots touches all of its memory sooner or later, and shares none: it must fit."""
        self._check(
            memory_bytes, f"{name!r} needs {format_bytes(memory_bytes)} of memory", "give it less: --memory SIZE"
        )

    def check_clones(self, name: str, lineage_id: str, memory_bytes: int, count: int, merged_bytes: int = 0) -> None:
        """`merged_bytes`: of the source, in merged pages. A clone's are copied when its RAM is moved to its place
        (Linux unmerges what mremap moves), and merged again later. CapacityError."""
        needed = count * (self.clone_need(lineage_id, memory_bytes) + merged_bytes)
        many = "A clone" if count == 1 else f"{count} clones"
        verb = "needs" if count == 1 else "need"
        self._check(needed, f"{many} of {name!r} {verb} about {format_bytes(needed)} of memory", "make fewer clones")

    def check_thaw(self, name: str, tenant_id: str) -> None:
        """Its guest will write again. CapacityError."""
        found = next((tenant for tenant in self.tenants() if tenant.id == tenant_id), None)
        if found is None or self.policy is not Policy.WORST_CASE:  # else there is nothing that speaks against a VM
            return
        needed = found.configured - max(found.resident, found.proportional)
        self._check(needed, f"{name!r} may want {format_bytes(needed)} more of memory when it runs", "leave it frozen")

    def check_unmerge(self, needed_bytes: int) -> None:
        """CapacityError says how much is missing."""
        self._check(
            needed_bytes, f"Unmerging takes up to {format_bytes(needed_bytes)} of memory", "remove some", promised=0
        )

    def _check(self, needed: int, what: str, instead: str, promised: int | None = None) -> None:
        available = self.available()
        promised = self.promised_bytes() if promised is None else promised
        missing = needed + promised + self.reserve_bytes - available
        if needed <= 0 or missing <= 0:
            return
        hint = f"Stop other VMs, or {instead}."
        if self.policy is Policy.WORST_CASE and promised:
            hint += ' The setting admission = "measured" counts what VMs really write.'
        raise CapacityError(
            f"{what}, and {format_bytes(missing)} is missing: {self._account(available, promised)}.",
            hint=hint,
            needed_bytes=needed,
            available_bytes=available,
            promised_bytes=promised,
            reserve_bytes=self.reserve_bytes,
            missing_bytes=missing,
        )

    def _account(self, available: int, promised: int) -> str:
        keep = f"{format_bytes(self.reserve_bytes)} stays free"
        if not promised:
            return f"{format_bytes(available)} is available, and {keep}"
        why = "may come to" if self.policy is Policy.WORST_CASE else "are expected to"
        return (
            f"{format_bytes(available)} is available, the VMs that run {why} want {format_bytes(promised)}, and {keep}"
        )
