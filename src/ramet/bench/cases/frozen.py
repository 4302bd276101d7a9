"""Clones of a frozen source, grown when they are asked for and out of a pool: request to running."""

from __future__ import annotations

from ramet.bench.cases.ground import BARE, RAMET, TEMPLATE, ground, take_turns, usual_guest
from ramet.bench.hand.classic import Template
from ramet.bench.outcome import Outcome
from ramet.bench.stage import BOOT_S, Stage

POOLED = "ramet, pooled"


def frozen(stage: Stage, outcome: Outcome) -> None:
    """A clone of a frozen VM, beside the bare mechanism, a template of memory, and loadvm."""
    guest, rounds = usual_guest(stage), 3 if stage.quick else 30
    outcome.guest, figures = guest.text, outcome.figures
    with ground(stage, figures, guest) as here:
        bare_source = here.bare_source()
        with Template(here.pattern, "template", BOOT_S) as template:
            stage.freeze(here.source)
            stage.tell(f"{rounds} clones in each way")
            take_turns(
                rounds,
                lambda _: here.ramet_clone(RAMET, pool=False),
                lambda number: here.bare_clone(bare_source, number),
                lambda _: here.template_clone(template),
            )
        bare_source.end()
        stage.tell("savevm and loadvm")
        here.saved_clones(1 if stage.quick else 5)
    outcome.targets = [
        figures.ratio("request to running ÷ the bare mechanism's whole clone", f"{RAMET}: running",
                      f"{BARE}: whole clone", 1.0),
    ]  # fmt: skip


def pooled(stage: Stage, outcome: Outcome) -> None:
    """A clone that is ready, beside one that has to be grown, and beside a template of memory."""
    guest, rounds = usual_guest(stage), 3 if stage.quick else 40
    outcome.guest, figures = guest.text, outcome.figures
    with ground(stage, figures, guest) as here, Template(here.pattern, "template", BOOT_S) as template:
        stage.freeze(here.source)
        with stage.pool(here.source, 2) as until_full:

            def take(_: int) -> None:
                until_full()
                here.ramet_clone(POOLED)
                until_full()  # the pool's own work is not to fall into what is measured next

            stage.tell(f"{rounds} clones in each way")
            take_turns(
                rounds, take, lambda _: here.ramet_clone(RAMET, pool=False), lambda _: here.template_clone(template)
            )
    outcome.targets = [
        figures.ratio("request to running ÷ without a pool", f"{POOLED}: running", f"{RAMET}: running", 0.15, aim=0.05),
        figures.ratio("request to running ÷ a memory template", f"{POOLED}: running", f"{TEMPLATE}: running", 0.15,
                      aim=0.05),
    ]  # fmt: skip
