"""Many clones of a frozen micro guest: as fast as they can be made, and as many as there is room for."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ramet.bench import facts
from ramet.bench.cases.ground import BARE, RAMET, Ground, ground, take_turns
from ramet.bench.figures import Target
from ramet.bench.hand import bare
from ramet.bench.hand.classic import bare_start
from ramet.bench.hand.machine import HandMachine
from ramet.bench.outcome import Outcome
from ramet.bench.stage import Guest, Stage
from ramet.bench.stock import MICRO
from ramet.errors import RametError
from ramet.hypervisor.blocknodes import DiskChain
from ramet.model.requests import CloneVm
from ramet.model.units import MIB
from ramet.model.views import CloneResult

BARE_START = "bare QEMU starts"
_ANSWER_S = 60.0


def burst(stage: Stage, outcome: Outcome) -> None:
    """One request for 64 clones, beside as many QEMUs that are started and loaded with nothing."""
    count, rounds = (8, 2) if stage.quick else (64, 5)
    guest = Guest(MICRO, 256, disk_mib=64)
    outcome.guest, figures = guest.text, outcome.figures
    outcome.notes.append(f"{count} at once; by hand {_at_once()} at a time, as more would only take turns.")
    with ground(stage, figures, guest) as here, _held(here) as (source, state):
        stage.freeze(here.source)
        stage.tell(f"{rounds} bursts of {count} in each way")
        take_turns(
            rounds,
            lambda _: _ramet(here, count),
            lambda _: _by_hand(
                here, BARE_START, count, None, lambda name, chains: bare_start(here.pattern, name, chains)
            ),
            lambda _: _by_hand(
                here, BARE, count, source, lambda name, chains: bare.fork_held(source, name, chains, state)
            ),
        )
    outcome.targets = [
        figures.ratio("wall ÷ bare QEMU starts", f"{RAMET}: wall", f"{BARE_START}: wall", 1.8, aim=1.3),
    ]


@contextlib.contextmanager
def _held(here: Ground) -> Iterator[tuple[HandMachine, int]]:
    """A source by hand that stands still with its state saved."""
    source = here.bare_source()
    state = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        source.monitor("stop")
        source.monitor.save_state(state)
        yield source, state
    finally:
        os.close(state)


def _at_once() -> int:
    return 2 * facts.cores()


def _ramet(here: Ground, count: int) -> None:
    prefix = here.stage.name("burst")
    request = CloneVm(name=prefix + "-{n}", count=count, bare=True, pool=False)
    began = time.monotonic()
    results = here.stage.finish(here.stage.client.clone_vm(here.source, request))
    here.figures.add(f"{RAMET}: task returned", (time.monotonic() - began) * 1000)
    here.figures.add(f"{RAMET}: wall", max(result.timings_ms.total for result in results))
    for result in results:
        steps = result.timings_ms.model_dump(include={"prepare", "fork", "qemu", "load"})
        here.figures.add_all(f"{RAMET}, each", steps)
    _remove_all(here.stage, results)


def _by_hand(
    here: Ground,
    who: str,
    count: int,
    source: HandMachine | None,
    make: Callable[[str, list[DiskChain]], HandMachine],
) -> None:
    """Overlays are there before the clock runs."""
    below = source.chains if source is not None else None
    names = [here.stage.name("hand") for _ in range(count)]
    chains = [here.pattern.overlays(name, below=below) for name in names]
    with ThreadPoolExecutor(_at_once()) as pool:
        began = time.monotonic()
        made = list(pool.map(make, names, chains))
        here.figures.add(f"{who}: wall", (time.monotonic() - began) * 1000)
    for machine in made:
        machine.end()


def _remove_all(stage: Stage, results: Sequence[CloneResult]) -> None:
    tasks = [stage.client.remove_vm(result.id, True) for result in results if result.ok]
    for task in tasks:
        stage.finish(task)


def density(stage: Stage, outcome: Outcome) -> None:
    """Clones alive at the same time, each of which must answer."""
    count = 16 if stage.quick else 200
    guest = Guest(MICRO, 256)
    outcome.guest, figures = guest.text, outcome.figures
    with stage.booted(stage.name("source"), guest) as view:
        stage.freeze(view.name)
        before = facts.available_bytes()
        stage.tell(f"{count} clones")
        request = CloneVm(name="many-{n}", count=count, bare=True)
        results = stage.finish(stage.client.clone_vm(view.name, request))
        try:
            made = [result for result in results if result.ok]
            figures.add("all running", max(result.timings_ms.total for result in made) / 1000, "s")
            stage.tell("asking every agent")
            began = time.monotonic()
            answered = sum(_answers(stage, result) for result in made)
            figures.add("all answered", time.monotonic() - began, "s")
            figures.add("alive and answering", answered, "clones")
            figures.add("host memory for each", (before - facts.available_bytes()) / count / MIB, "MiB")
        finally:
            stage.tell("removing them")
            _remove_all(stage, results)
    outcome.targets = [
        Target(name="alive at once, every agent answering", limit=count, measured=answered, unit="clones",
               at_least=True),
    ]  # fmt: skip
    outcome.notes.append(f"{count * guest.memory_mib} MiB are configured; the host has {facts.memory_mib()} MiB.")


def _answers(stage: Stage, result: CloneResult) -> bool:
    try:
        stage.wait_answer(result.id, _ANSWER_S)
    except (RametError, OSError):
        return False
    return True
