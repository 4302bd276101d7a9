"""What a clone that does nothing costs after a minute."""

from __future__ import annotations

import re
import time
from pathlib import Path

from ramet.bench.cases.ground import DEBIAN_GUEST, MICRO_GUEST, ground
from ramet.bench.figures import Figures
from ramet.bench.outcome import Outcome
from ramet.bench.stage import Guest, Stage
from ramet.model.units import MIB
from ramet.model.views import VmView

_PRIVATE = re.compile(r"^Private_(?:Clean|Dirty): +(\d+) kB$", re.MULTILINE)


def idle(stage: Stage, outcome: Outcome) -> None:
    """Memory that is its guest's alone, and what its process has beside guest memory."""
    guests = (MICRO_GUEST,) if stage.quick else (MICRO_GUEST, DEBIAN_GUEST)
    wait_s, settle_s = (5.0, 5.0) if stage.quick else (60.0, 15.0)
    outcome.guest = "; ".join(guest.text for guest in guests)
    outcome.notes.append(
        f"After {wait_s:.0f} s; before, the source had nothing to do for {settle_s:.0f} s. Processes' memory by Pss: "
        "what several share counts by its part."
    )
    for guest in guests:
        _measure(stage, outcome.figures, guest, 3, wait_s, settle_s)
    figures = outcome.figures
    for guest in guests:
        outcome.targets += [
            figures.absolute(f"{guest.recipe}: guest memory of its own", f"{guest.recipe}: guest-unique", 8),
            figures.absolute(f"{guest.recipe}: the rest of its process", f"{guest.recipe}: rest of the process", 25),
        ]


def _measure(stage: Stage, figures: Figures, guest: Guest, count: int, wait_s: float, settle_s: float) -> None:
    with ground(stage, figures, guest) as here:
        time.sleep(settle_s)  # what the commands of a moment ago set going is not what an idle guest does
        stage.freeze(here.source)
        clones = [stage.clone(here.source, stage.name("idle")) for _ in range(count)]
        stage.tell(f"waiting {wait_s:.0f} s")
        time.sleep(wait_s)  # to be idle for so long is what is asked
        for clone in clones:
            _note(figures, guest.recipe, stage.client.show_vm(clone.id))
        for clone in clones:
            stage.remove(clone.id)


def _note(figures: Figures, who: str, view: VmView) -> None:
    memory = view.memory
    if memory is None or view.pid is None:
        return
    figures.add(f"{who}: guest-unique", memory.unique_bytes / MIB, "MiB")
    figures.add(f"{who}: rest of the process", memory.process_overhead_bytes / MIB, "MiB")
    figures.add(f"{who}: of it private", _private_bytes(view.pid) / MIB - memory.unique_bytes / MIB, "MiB")
    figures.add(f"{who}: resident", memory.resident_bytes / MIB, "MiB")


def _private_bytes(pid: int) -> int:
    """Of the whole process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(value) for value in _PRIVATE.findall(text))
