"""From the request to a machine of its own on the network: a clone that has taken on its identity."""

from __future__ import annotations

import contextlib
import time

from ramet.bench.cases.ground import make_ready, usual_guest
from ramet.bench.figures import Figures
from ramet.bench.outcome import Outcome
from ramet.bench.stage import Guest, Stage
from ramet.errors import DeadlineError, GuestError, PeerError, RametError, UnsupportedError
from ramet.model.machine import DEFAULT_NETWORK
from ramet.model.views import CloneResult

_CLOSED_PORT = 9
"""Discard: nobody listens, and a refusal is an answer."""
_ANSWER_S = 60.0
LIVE, FROZEN, POOLED = "live", "frozen", "pooled"


def identity(stage: Stage, outcome: Outcome) -> None:
    """One at a time; each is removed before the next is made."""
    if not stage.client.host_view().privileged:
        raise UnsupportedError("An address of its own needs a port group.", hint="Run it as root.")
    usual, rounds = usual_guest(stage), 2 if stage.quick else 10
    guest = Guest(usual.recipe, usual.memory_mib, network=DEFAULT_NETWORK)
    outcome.guest, figures = guest.text, outcome.figures
    with stage.booted(stage.name("source"), guest) as view:
        make_ready(stage.shell(view.id))
        stage.tell(f"{rounds} clones of each kind")
        for _ in range(rounds):
            _clone(stage, figures, view.name, LIVE)
        stage.freeze(view.name)
        for _ in range(rounds):
            _clone(stage, figures, view.name, FROZEN, pool=False)
        with stage.pool(view.name, 1) as until_full:
            for _ in range(rounds):
                until_full()
                _clone(stage, figures, view.name, POOLED)
    outcome.targets = [
        figures.absolute(f"{kind}: request to on the network", f"{kind}: first answer on the network", 3000, aim=1000)
        for kind in (LIVE, FROZEN, POOLED)
    ]


def _clone(stage: Stage, figures: Figures, source: str, kind: str, **more: object) -> None:
    name = stage.name(kind)
    began = time.monotonic()
    result = stage.clone(source, name, bare=False, **more)
    _check(result, kind)
    _first_answer(stage, name)
    took_ms = (time.monotonic() - began) * 1000
    timings = result.timings_ms
    times = {"running": timings.total, "identity": timings.identity, "address": timings.network}
    figures.add_all(kind, {**times, "first answer on the network": took_ms})
    stage.remove(name)


def _check(result: CloneResult, kind: str) -> None:
    if result.problem:
        raise GuestError(f"{result.name} is not on the network: {result.problem}")
    if result.from_pool is not (kind == POOLED):
        raise PeerError(f"{result.name} came {'out of' if result.from_pool else 'not out of'} the pool.")


def _first_answer(stage: Stage, name: str) -> None:
    """Until the guest's TCP says anything at all."""
    deadline, why = time.monotonic() + _ANSWER_S, ""
    while time.monotonic() < deadline:
        try:
            with contextlib.closing(stage.client.open_stream("tcp", name, _CLOSED_PORT)):
                return
        except RametError as exc:
            why = str(exc)
            if "refused" in why.lower():
                return
        time.sleep(0.01)
    raise DeadlineError(f"{name} does not answer on the network: {why}")
