"""The bare mechanism: the library preloaded into QEMU, and the monitor driven by hand, from a plain program.

What is needed of the host is made before the clock runs (overlays, taps, sockets, the command line), which favours it:
Ramet's own times have all of that in them.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from ramet.bench.hand.machine import HandMachine, Pattern, make_overlay, memory_file
from ramet.hypervisor.blocknodes import DiskChain, LayerFile, format_node
from ramet.hypervisor.fork import ForkClient, ForkRequest

STUN_PARTS = ("stop", "snapshot", "state", "fork", "resume")

_FORK_S = 30.0
_BOTH_SHARED = {"driver": "qcow2", "read-only": False, "discard": "unmap"}


@dataclass(frozen=True)
class BareTimes:
    """Milliseconds of one clone by hand. `whole` is what lies between the source's stop and the clone's first run."""

    stun: float
    parts: dict[str, float]
    """Of the stun, as Ramet's own are parted."""
    fork: float
    qemu: float
    load: float
    whole: float

    def by_step(self) -> dict[str, float]:
        steps = {"fork": self.fork, "qemu": self.qemu, "load": self.load, "whole clone": self.whole}
        return {"stun": self.stun, **{f"stun, {part}": took for part, took in self.parts.items()}, **steps}


def launch_source(pattern: Pattern, name: str) -> HandMachine:
    """A VM that can be forked, booting."""
    source = pattern.boot(name, native=pattern.native)
    source.monitor.ignore_shared()
    return source


def clone(source: HandMachine, name: str) -> tuple[HandMachine, BareTimes]:
    """One live clone. The caller ends it; `settle` then takes the source's extra layers away."""
    tops = _add_tops(source, f"{name}-source")
    pattern, chains = source.pattern, source.pattern.overlays(name, below=source.chains)
    plan = pattern.plan(name, chains, native=pattern.native, forked=True, incoming="defer")
    with memory_file() as state, ForkClient.connect(source.run_dir.fork, _FORK_S) as fork:
        with plan, plan.stdio() as stdio:
            request = ForkRequest(plan.argv, plan.env, (*stdio, *plan.table.fds), plan.name)
            laps = [time.monotonic()]
            source.monitor("stop")
            laps.append(time.monotonic())
            _snapshot(source, tops)
            laps.append(time.monotonic())
            source.monitor.save_state(state)
            laps.append(time.monotonic())
            reply = fork.start_fork(request)
            laps.append(time.monotonic())
            source.monitor("cont")
            laps.append(time.monotonic())
            began, resumed = laps[0], laps[-1]
            made = pattern.born(name, reply.pid, reply.pidfd, chains)
            fork.finish_fork()
        up, running = wake(made, state)
    source.chains = tops
    times = BareTimes(
        stun=(resumed - began) * 1000,
        parts={part: (end - start) * 1000 for part, start, end in zip(STUN_PARTS, laps, laps[1:], strict=False)},
        fork=reply.fork_ms,
        qemu=(up - resumed) * 1000,
        load=(running - up) * 1000,
        whole=(running - began) * 1000,
    )
    return made, times


def wake(made: HandMachine, state: int) -> tuple[float, float]:
    """Load the state and let it run; when its QEMU was up, and when it ran."""
    made.monitor.ignore_shared()
    up = time.monotonic()
    os.lseek(state, 0, os.SEEK_SET)
    made.monitor.load_state(state)
    made.monitor("cont")
    return up, time.monotonic()


def fork_held(source: HandMachine, name: str, chains: list[DiskChain], state: int) -> HandMachine:
    """A clone of a source that is held (stopped, its state saved): no stun. Returns when it runs."""
    pattern = source.pattern
    plan = pattern.plan(name, chains, native=pattern.native, forked=True, incoming="defer")
    with plan, plan.stdio() as stdio, ForkClient.connect(source.run_dir.fork, _FORK_S) as fork:
        reply = fork.fork(ForkRequest(plan.argv, plan.env, (*stdio, *plan.table.fds), plan.name))
    made = pattern.born(name, reply.pid, reply.pidfd, chains)
    fd = os.open(f"/proc/self/fd/{state}", os.O_RDONLY)  # an offset of its own: several may load at once
    try:
        wake(made, fd)
    finally:
        os.close(fd)
    return made


def _add_tops(source: HandMachine, name: str) -> list[DiskChain]:
    """The layers that the source will write to after the snapshot, known to QEMU before it is stopped."""
    tops = []
    for chain in source.chains:
        path = source.pattern.folder / f"{name}-{chain.disk.id}.qcow2"
        make_overlay(path, chain.top.path, chain.disk.size_bytes)
        file = {"driver": "file", "filename": str(path), "discard": "unmap"}
        node = {**_BOTH_SHARED, "node-name": format_node(path.stem), "file": file, "backing": None}
        source.monitor("blockdev-add", node)
        below = tuple(LayerFile(layer.id, layer.path, False) for layer in chain.layers)
        tops.append(DiskChain(chain.disk, (LayerFile(path.stem, path, True), *below)))
    return tops


def _snapshot(source: HandMachine, tops: list[DiskChain]) -> None:
    pairs = [(format_node(old.top.id), format_node(new.top.id)) for old, new in zip(source.chains, tops, strict=True)]
    actions = [{"type": "blockdev-snapshot", "data": {"node": old, "overlay": new}} for old, new in pairs]
    if actions:
        source.monitor("transaction", {"actions": actions})


def settle(source: HandMachine) -> None:
    """Merge the source's newest layer into the one below, so that no clone pays for those before it."""
    kept = []
    for chain in source.chains:
        job, node = f"settle-{chain.disk.id}", format_node(chain.top.id)
        below = format_node(chain.layers[1].id)
        source.monitor("block-commit", {"job-id": job, "device": node, "base-node": below})
        while not (jobs := source.monitor("query-block-jobs")) or not jobs[0]["ready"]:
            time.sleep(0.005)
        source.monitor("block-job-complete", {"device": job})
        while source.monitor("query-block-jobs"):
            time.sleep(0.005)
        source.monitor("blockdev-del", {"node-name": node})
        chain.top.path.unlink()
        merged = chain.layers[1]
        kept.append(DiskChain(chain.disk, (LayerFile(merged.id, merged.path, True), *chain.layers[2:])))
    source.chains = kept
