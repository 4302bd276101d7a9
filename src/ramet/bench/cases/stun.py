"""How long a source stands still for a live clone, and what fifty of them in a row do to it."""

from __future__ import annotations

import math
import re
import statistics

from ramet.bench.cases.ground import (
    BARE,
    DEBIAN_GUEST,
    MICRO_GUEST,
    RAMET,
    ground,
    make_ready,
    take_turns,
    write_a_little,
)
from ramet.bench.figures import Figures, Target
from ramet.bench.hand import bare
from ramet.bench.hand.writer import make_busy
from ramet.bench.outcome import Outcome
from ramet.bench.shell import Shell
from ramet.bench.stage import Guest, Stage
from ramet.bench.stock import MICRO
from ramet.errors import GuestError
from ramet.model.views import VmView

_SPEED_MIB = 64
_ENDS = 5
"""The first and the last so many of a row are compared."""
_UPTIME = re.compile(r"^([\d.]+) ([\d.]+)$", re.MULTILINE)

_TIMED = "read before rest < /proc/uptime; {}; read after rest < /proc/uptime; echo $before $after"
WRITE_SPEED = _TIMED.format(f"dd if=/dev/zero of=/data/speed bs=1M count={_SPEED_MIB} conv=fsync,notrunc 2>/dev/null")
READ_SPEED = "sync; echo 3 > /proc/sys/vm/drop_caches; " + _TIMED.format("dd if=/data/speed of=/dev/null bs=1M 2>&1")


def stun(stage: Stage, outcome: Outcome) -> None:
    """Of a guest that does little."""
    _stun(stage, outcome, MICRO_GUEST if stage.quick else DEBIAN_GUEST, 0, 6 if stage.quick else 40)


def busy(stage: Stage, outcome: Outcome) -> None:
    """Of a guest that rewrites most of its memory at random."""
    guest = Guest(MICRO, 256 if stage.quick else 2048, disk_mib=128)
    _stun(stage, outcome, guest, 128 if stage.quick else 1536, 6 if stage.quick else 40)


def _stun(stage: Stage, outcome: Outcome, guest: Guest, busy_mib: int, rounds: int) -> None:
    figures = outcome.figures
    outcome.guest = guest.text + (f", of which {busy_mib} are rewritten at random" if busy_mib else "")
    with ground(stage, figures, guest) as here:
        by_hand = here.bare_source()
        if busy_mib:
            stage.tell("filling memory")
            for shell in (here.shell, by_hand.agent):
                make_busy(shell, busy_mib)

        def ours(number: int) -> None:
            write_a_little(here.shell, number)
            here.ramet_clone(RAMET)
            _note_parts(figures, stage.client.show_vm(here.source))

        stage.tell(f"{rounds} live clones in each way")
        take_turns(rounds, ours, lambda number: here.bare_clone(by_hand, number))
    pair = (f"{RAMET}: stun", f"{BARE}: stun")
    outcome.targets = [
        figures.ratio("stun ÷ the bare mechanism's, median", *pair, 1.3),
        figures.ratio("95th percentile ÷ the bare mechanism's median", *pair, 2.0, quantile="p95"),
    ]


def _note_parts(figures: Figures, view: VmView) -> None:
    """Where the time of the last stun went, as the VM's record has it."""
    for part in bare.STUN_PARTS:
        figures.add(f"{RAMET}: stun, {part}", getattr(view.stuns[-1], f"{part}_ms"))


def fifty(stage: Stage, outcome: Outcome) -> None:
    """Fifty in a row of one busy source, each removed before the next; then its disk, beside a twin's that has none."""
    clones, busy_mib = (12, 64) if stage.quick else (50, 256)
    guest = Guest(MICRO, 256 if stage.quick else 512, disk_mib=512)
    outcome.guest, figures = f"{guest.text}, of which {busy_mib} are rewritten at random", outcome.figures
    with ground(stage, figures, guest) as here, stage.booted(stage.name("twin"), guest) as twin_view:
        twin = stage.shell(twin_view.id)
        make_ready(twin)
        for shell in (here.shell, twin):
            make_busy(shell, busy_mib)
            shell.run(WRITE_SPEED)
        stage.tell(f"{clones} live clones in a row")
        for number in range(clones):
            write_a_little(here.shell, number)
            here.ramet_clone(RAMET)
            figures.add("chain", _depth(stage.client.show_vm(here.source)), "layers")
        stage.tell("disk throughput")
        _compare_disks(figures, here.shell, twin, 3 if stage.quick else 12)
    stuns = figures.of(f"{RAMET}: stun").values
    ends = statistics.median(stuns[-_ENDS:]) / statistics.median(stuns[:_ENDS])
    outcome.targets = [
        Target(name="the last five's stun ÷ the first five's", limit=1.3, measured=round(ends, 3),
               noise=_noise_of_ends(figures)),
        Target(name="longest chain", limit=8, measured=figures.of("chain").high, unit="layers"),
        *(figures.ratio(f"{what} throughput ÷ an uncloned twin's", f"source: {what}", f"twin: {what}", 0.9,
                        at_least=True) for what in ("write", "read")),
    ]  # fmt: skip


def _noise_of_ends(figures: Figures) -> float:
    """Of a ratio of medians of five: what all stuns scatter, for so few."""
    stuns = figures.of(f"{RAMET}: stun")
    return round(stuns.noise * math.sqrt(2 * stuns.n / _ENDS), 4)


def _depth(view: VmView) -> int:
    return max(len(disk.chain) for disk in view.disks)


def _compare_disks(figures: Figures, source: Shell, twin: Shell, rounds: int) -> None:
    """Files of both are written once more before it counts: the first writes after a clone allocate."""
    first = _speed(source, WRITE_SPEED)
    figures.add("source: first write after the last clone", first, "MiB/s")
    _speed(twin, WRITE_SPEED)

    def of(who: str, shell: Shell) -> None:
        figures.add(f"{who}: write", _speed(shell, WRITE_SPEED), "MiB/s")
        figures.add(f"{who}: read", _speed(shell, READ_SPEED), "MiB/s")

    take_turns(rounds, lambda _: of("source", source), lambda _: of("twin", twin))


def _speed(shell: Shell, script: str) -> float:
    """MiB a second, as the guest counts."""
    said = shell.run(script)
    found = _UPTIME.search(said)
    if found is None:
        raise GuestError(f"A guest said {said.strip()[-80:]!r}, and not how long its dd took.")
    before, after = map(float, found.groups())
    return _SPEED_MIB / max(after - before, 0.01)
