"""What cases share: which guest, how it is made ready, and one clone in each of the ways."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ramet.bench.figures import Figures
from ramet.bench.hand import bare, classic
from ramet.bench.hand.machine import HandMachine, Pattern
from ramet.bench.shell import Shell
from ramet.bench.stage import BOOT_S, Guest, Stage
from ramet.bench.stock import DEBIAN, MICRO
from ramet.model.views import VmView

RAMET, BARE, TEMPLATE, SAVEVM, BOOT = "ramet", "bare mechanism", "memory template", "savevm/loadvm", "boot"

MICRO_GUEST = Guest(MICRO, 256, disk_mib=128)
DEBIAN_GUEST = Guest(DEBIAN, 512)

_READY = """
if command -v systemctl >/dev/null; then timeout 90 systemctl is-system-running --wait || :; fi
mkdir -p /data
if [ -b /dev/vda ] && ! grep -q '^/dev/vda' /proc/mounts; then
    mke2fs -q /dev/vda >/dev/null 2>&1 && mount /dev/vda /data
fi
"""


def usual_guest(stage: Stage) -> Guest:
    """The server that people clone; for a quick run the small one."""
    return MICRO_GUEST if stage.quick else DEBIAN_GUEST


def make_ready(shell: Shell) -> None:
    """Its services are up, and there is a folder /data on its disk."""
    shell.run(_READY)


def write_a_little(shell: Shell, number: int) -> None:
    """So that the disk has something that a clone must not share with what the source writes next."""
    shell.run(f"echo {number} > /data/count; sync")


def take_turns(rounds: int, *ways: Callable[[int], None]) -> None:
    """Each way once a round, and the order turned round every time: what drifts hits all of them."""
    for number in range(rounds):
        order = ways if number % 2 == 0 else tuple(reversed(ways))
        for way in order:
            way(number)


@dataclass
class Ground:
    """A VM of Ramet's, and the same machine by hand."""

    stage: Stage
    figures: Figures
    view: VmView
    pattern: Pattern

    @property
    def source(self) -> str:
        return self.view.name

    @property
    def shell(self) -> Shell:
        """Of Ramet's VM."""
        return self.stage.shell(self.view.id)

    def bare_source(self) -> HandMachine:
        """Booted by hand under the library; ends with the pattern."""
        source = bare.launch_source(self.pattern, "bare")
        source.agent.wait(BOOT_S)
        make_ready(source.agent)
        return source

    # -- one clone in each way, made, noted and removed ------------------------------------------------------------

    def ramet_clone(self, who: str, **more: object) -> None:
        name = self.stage.name("clone")
        result = self.stage.clone(self.source, name, **more)
        times = {step: took for step, took in result.timings_ms.model_dump().items() if took}
        times["let go"], times["running"] = times.pop("running"), times.pop("total")
        self.figures.add_all(who, times)
        self.stage.remove(name)

    def bare_clone(self, source: HandMachine, number: int) -> None:
        write_a_little(source.agent, number)
        made, times = bare.clone(source, self.stage.name("bare"))
        self.figures.add_all(BARE, times.by_step())
        made.end()
        bare.settle(source)

    def template_clone(self, template: classic.Template) -> None:
        made, took_ms = template.clone(self.stage.name("mapped"))
        self.figures.add(f"{TEMPLATE}: running", took_ms)
        made.end()

    def saved_clones(self, rounds: int) -> None:
        """Boot, savevm, loadvm: few, for they take seconds each."""
        machine, took_ms = classic.boot(self.pattern, self.stage.name("plain"), BOOT_S)
        self.figures.add(f"{BOOT}: answer", took_ms)
        make_ready(machine.agent)
        self.figures.add(f"{SAVEVM}: stun", classic.save(machine))
        machine.monitor("stop")
        for _ in range(rounds):
            made, took_ms = classic.load(machine, self.stage.name("loaded"))
            self.figures.add(f"{SAVEVM}: running", took_ms)
            made.end()
        machine.end()


@contextlib.contextmanager
def ground(stage: Stage, figures: Figures, guest: Guest) -> Iterator[Ground]:
    """A booted and ready VM of Ramet's, and the pattern of it for what is done by hand."""
    stage.tell(f"booting {guest.text}")
    with stage.booted(stage.name("source"), guest) as view, stage.pattern(view) as pattern:
        make_ready(stage.shell(view.id))
        yield Ground(stage, figures, view, pattern)
