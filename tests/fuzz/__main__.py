"""python -m tests.fuzz [TARGET…] [--seconds 60] [--corpus FOLDER]: all targets, or those that are named.

With atheris (``pip install atheris``) it is guided by coverage, a process for each target; without, bytes are mutated
at random. What fails is written to FOLDER/TARGET.crash. Exit code 1 when something did.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser("tests.fuzz", description="Fuzz what parses bytes from guests and from disk.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"Of: {', '.join(TARGETS)}.")
    parser.add_argument("--seconds", type=float, default=60.0, help="For each target (60).")
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"), help="Where what was found is kept (.fuzz).")
    parser.add_argument("--seed", type=int, default=0, help="Of the random mutations, without atheris.")
    parser.add_argument("--plain", action="store_true", help="Random mutations, also where there is atheris.")
    options = parser.parse_args()
    guided = not options.plain and importlib.util.find_spec("atheris") is not None
    failed = []
    for name in options.targets or TARGETS:
        if name not in TARGETS:
            parser.error(f"there is no target {name!r}")
        folder = options.corpus / name
        folder.mkdir(parents=True, exist_ok=True)
        run = _guided if guided else _plain
        whole, count = run(name, options.seconds, folder, options.seed)
        print(f"{name:16} {'ok' if whole else 'FAILED':6} {count}", flush=True)
        failed += [] if whole else [name]
    return 1 if failed else 0


def _guided(name: str, seconds: float, folder: Path, seed: int) -> tuple[bool, str]:
    """libFuzzer ends its process, so each target has one of its own."""
    for number, data in enumerate(TARGETS[name].seeds()):
        (folder / f"seed-{number}").write_bytes(data)
    longest = max(4096, *(2 * len(data) for data in TARGETS[name].seeds()))
    options = [
        f"-max_total_time={int(seconds)}",
        f"-max_len={longest}",
        f"-artifact_prefix={folder}/crash-",
        "-timeout=20",
    ]
    argv = [sys.executable, "-m", "tests.fuzz.guided", name, str(folder), "-print_final_stats=1", *options]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ended.returncode:
        (folder / "crash.log").write_text(ended.stdout + ended.stderr)
    lines = [line for line in ended.stderr.splitlines() if "number_of_executed_units" in line]
    return ended.returncode == 0, f"{lines[0].split()[-1] if lines else '?'} calls, guided"


def _plain(name: str, seconds: float, folder: Path, seed: int) -> tuple[bool, str]:
    target, chance = TARGETS[name], random.Random(f"{seed} {name}")
    corpus, count, deadline = target.seeds(), 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = mutated(chance.choice(corpus), chance)
        count += 1
        try:
            target.call(data)
        except BaseException:
            (folder / "crash").write_bytes(data)
            raise
    return True, f"{count} calls, at random"


if __name__ == "__main__":
    sys.exit(main())
