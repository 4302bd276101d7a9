"""All cases, in the order in which they run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ramet.bench.cases.answer import answer
from ramet.bench.cases.frozen import frozen, pooled
from ramet.bench.cases.identity import identity
from ramet.bench.cases.idle import idle
from ramet.bench.cases.many import burst, density
from ramet.bench.cases.stun import busy, fifty, stun
from ramet.bench.cases.vsphere import crowd, records, surface
from ramet.bench.outcome import Case
from ramet.errors import UsageError

_DEBIAN, _MICRO = ("debian",), ("micro",)

CASES: tuple[Case, ...] = (
    Case("stun", "Stun of a live clone", stun, _DEBIAN),
    Case("busy", "Stun of a live clone of a busy guest", busy, _MICRO),
    Case("fifty", "Fifty live clones of one busy source in a row", fifty, _MICRO),
    Case("frozen", "A clone of a frozen VM", frozen, _DEBIAN),
    Case("pooled", "A clone out of a pool", pooled, _DEBIAN),
    Case("answer", "Request to the guest agent's first answer", answer, _DEBIAN),
    Case("burst", "A burst of clones", burst, _MICRO),
    Case("idle", "Memory of an idle clone", idle, ("micro", "debian")),
    Case("density", "Clones alive at once", density, _MICRO),
    Case("identity", "A clone with an identity of its own, on the network", identity, _DEBIAN),
    Case("vsphere", "A vSphere client reads, and clones out of a pool", surface, _MICRO),
    Case("vsphere-crowd", "Many vSphere clients at once", crowd, _MICRO),
    Case("vsphere-records", "An inventory of many VMs, through the vSphere API", records, ()),
)


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases of these names, all of them for none. Raises UsageError for a name that is none."""
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Cases are: {', '.join(known)}."
            raise UsageError(f"There is no case {name!r}.", hint=hint)
    return [case for case in CASES if case.name in names] if names else list(CASES)
