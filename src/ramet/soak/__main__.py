"""``python -m ramet.soak [--minutes M | --cycles N] [--seed N] [--json]``; `make soak` runs both.

Exit code 0 when nothing leaked and nothing was lost, 1 when something was, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ramet.errors import RametError
from ramet.soak import census, report
from ramet.soak.cycles import Cycles
from ramet.soak.life import Life
from ramet.soak.report import Problem, Report
from ramet.soak.stage import Furnish, Tell, own_stage
from ramet.soak.walk import Walk
from ramet.soak.world import Step
from ramet.testing import leaks

DEFAULT_MINUTES = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    tell: Tell = (lambda line: None) if arguments.quiet else _tell
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
    log = arguments.log or Path(tempfile.gettempdir()) / f"ramet-soak-{seed}.jsonl"
    try:
        replay = read_steps(arguments.replay) if arguments.replay else None
        found = soak(tell, log, seed, minutes=arguments.minutes, cycles=arguments.cycles, replay=replay)
    except (RametError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("It was interrupted; nothing is left of it.", file=sys.stderr)
        return 130
    print(found.model_dump_json(indent=1) if arguments.json else "\n".join(report.text(found)))
    return 0 if found.ok else 1


def soak(
    tell: Tell,
    log: Path,
    seed: int,
    *,
    minutes: float | None = None,
    cycles: int | None = None,
    replay: Sequence[Step] | None = None,
    furnish: Furnish | None = None,
    samples: int | None = None,
) -> Report:
    """One soak, from an empty state folder to none at all; Ctrl-C ends it with what it has found.

    Raises RametError when it cannot begin.
    """
    kind = "cycles" if cycles else "mixed"
    with log.open("w") as file:
        with own_stage(tell, *([furnish] if furnish else [])) as stage:
            life = Life(stage, kind, seed, file)
            life.begin()
            try:
                _live(life, minutes, cycles, replay, samples)
            except KeyboardInterrupt:
                life.stage.tell("It was interrupted; this is what it found until then.")
            life.doing = "the end"
            if life.problems:
                log.with_suffix(".daemon.log").write_bytes(stage.log.read_bytes())
        left = leaks.left_behind(stage.state_dir) + [str(path) for path in census.control_groups(life.ids)]
        life.problems += [Problem(step="the end", what=f"left behind: {what}") for what in left]
        return life.report(str(log))


def _live(
    life: Life, minutes: float | None, cycles: int | None, replay: Sequence[Step] | None, samples: int | None
) -> None:
    if cycles:
        Cycles(life, cycles, *([samples] if samples else [])).run()
    else:
        Walk(life, (minutes or DEFAULT_MINUTES) * 60, replay).run()


def read_steps(log: Path) -> list[Step]:
    """Those of an earlier soak. Raises OSError."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [Step.model_validate(line["step"]) for line in lines if "step" in line]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m ramet.soak", description="A long random life, and what leaks.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="Of a random walk with kills of VMs and daemon (default: 20).")
    length.add_argument("--cycles", type=int, help="Clone and remove so often instead.")
    length.add_argument("--replay", type=Path, metavar="FILE", help="The steps of an earlier walk instead.")
    parser.add_argument("--seed", type=int, help="Of the walk; a random one, which is told, by default.")
    parser.add_argument("--log", type=Path, metavar="FILE", help="Where the actions are written, for --replay.")
    parser.add_argument("--json", action="store_true", help="The report as JSON.")
    parser.add_argument("--quiet", action="store_true", help="Say nothing on the way.")
    return parser


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
