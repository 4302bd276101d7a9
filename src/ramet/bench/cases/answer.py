"""From the request to the guest agent's first answer: what a person waits for, beside a boot."""

from __future__ import annotations

import time

from ramet.bench.cases.ground import BOOT, Ground, ground, take_turns, usual_guest
from ramet.bench.hand import classic
from ramet.bench.outcome import Outcome
from ramet.bench.stage import BOOT_S, Stage

LIVE, FROZEN, POOLED = "live", "frozen", "pooled"


def answer(stage: Stage, outcome: Outcome) -> None:
    """The whole way of a request: the API, the clone, and the guest's own first words."""
    guest, rounds = usual_guest(stage), 5 if stage.quick else 20
    outcome.guest, figures = guest.text, outcome.figures
    with ground(stage, figures, guest) as here:
        stage.tell("booting by hand")
        for _ in range(1 if stage.quick else 3):
            machine, took_ms = classic.boot(here.pattern, stage.name("plain"), BOOT_S)
            figures.add(f"{BOOT}: answer", took_ms)
            machine.end()
        stage.tell(f"{rounds} clones of each kind")
        for _ in range(rounds):
            _ask(here, LIVE)
        stage.freeze(here.source)
        with stage.pool(here.source, 2) as until_full:

            def pooled(_: int) -> None:
                until_full()
                _ask(here, POOLED)
                until_full()

            take_turns(rounds, pooled, lambda _: _ask(here, FROZEN, pool=False))
    outcome.notes.append("An answer is the guest agent's, to a ping, as callers of the API get it.")
    outcome.targets = [
        figures.ratio(
            f"{kind}: request to the agent's first answer ÷ boot", f"{kind}: answer", f"{BOOT}: answer", limit
        )
        for kind, limit in ((LIVE, 0.02), (FROZEN, 0.02), (POOLED, 0.01))
    ]


def _ask(here: Ground, kind: str, **more: object) -> None:
    name = here.stage.name("clone")
    began = time.monotonic()
    result = here.stage.clone(here.source, name, **more)
    returned = time.monotonic()
    here.stage.wait_answer(result.id)
    answered = time.monotonic()
    here.figures.add(f"{kind}: running", result.timings_ms.total)
    here.figures.add(f"{kind}: task returned", (returned - began) * 1000)
    here.figures.add(f"{kind}: answer", (answered - began) * 1000)
    here.stage.remove(name)
