"""The demo's proof that clones are machines of their own: what must differ between any two of them, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ramet.cli.output import Column
from ramet.model.identity import Acknowledgement
from ramet.model.views import CloneResult, VmView

DRAW = "od -An -N4 -tx4 /dev/urandom; cat /run/ramet/generation"
"""A random number of the kernel's, and the guest's generation."""

COLUMNS = tuple(
    Column(title)
    for title in ("clone", "hostname", "address", "MAC", "machine-id", "SSH host key", "random number", "generation")
)


@dataclass(frozen=True)
class Face:
    """What one clone shows of itself. Empty for what its guest does not have: a busybox has no machine-id."""

    name: str
    hostname: str
    address: str
    mac: str
    machine_id: str
    ssh_key: str
    random: str
    generation: str

    @property
    def row(self) -> tuple[str, ...]:
        """Long values by their beginning."""
        short = (self.machine_id[:8], self.ssh_key[:8], self.random, self.generation[:8])
        return (self.name, self.hostname, self.address, self.mac, *short)


def face(view: VmView, addresses: Iterable[str], drawn: str) -> Face:
    """From the VM's record, the addresses that its clone had, and what `DRAW` printed in its guest."""
    said = view.identity.acknowledgement or Acknowledgement(generation="")
    random, _, generation = drawn.strip().partition("\n")
    return Face(
        name=view.name,
        hostname=said.hostname,
        address=", ".join(addresses),
        mac=view.nics[0].mac if view.nics else "",
        machine_id=said.machine_id,
        ssh_key=next((key.removeprefix("SHA256:") for key in said.ssh_keys.values()), ""),
        random=random.strip(),
        generation=generation.strip(),
    )


def alike(faces: Sequence[Face]) -> list[str]:
    """Sentences about what two clones have in common that they must not, or what only some of them have."""
    complaints = []
    seen: dict[tuple[str, str], str] = {}
    for what in ("hostname", "address", "mac", "machine_id", "ssh_key", "random", "generation"):
        without = [one.name for one in faces if not getattr(one, what)]
        always = what in ("hostname", "mac", "random", "generation")
        if without and (always or len(without) < len(faces)):
            complaints.append(f"No {what.replace('_', '-')} is known of {', '.join(without)}.")
    for one in faces:
        for what in ("hostname", "address", "mac", "machine_id", "ssh_key", "random", "generation"):
            value = getattr(one, what)
            other = seen.setdefault((what, value), one.name)
            if value and other != one.name:
                complaints.append(f"{one.name} has the {what.replace('_', '-')} of {other}: {value}.")
    return complaints


def unacknowledged(results: Iterable[CloneResult]) -> list[str]:
    return [f"{result.name} stays off the network: {result.problem}" for result in results if result.problem]
