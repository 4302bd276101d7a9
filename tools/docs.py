"""Write the pages of the reference that are made from the lifecycle's table and from the tree of errors.

python tools/docs.py [--check]            # --check: exit 1 when a page is not what it should be
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from ramet import errors
from ramet.errors import RametError
from ramet.machine.lifecycle import TRANSITIONS, Happening, Operation
from ramet.model.machine import VmState

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "reference"

_LIFECYCLE = """\
# Lifecycle of a VM

Generated from the program: `python tools/docs.py`.

| State | Meaning |
|---|---|
"""

_MEANINGS = {
    VmState.OFF: "No process runs, and there is no state but the disks.",
    VmState.STARTING: "A process is coming up, or loads a saved state.",
    VmState.RUNNING: "The guest executes.",
    VmState.PAUSED: "On; QEMU stopped the guest by itself: the disk is full or broken, or the guest's kernel panicked.",
    VmState.FROZEN: "On, and held at one instruction; a moment is kept, from which any number of clones can be made.",
    VmState.SUSPENDED: "The whole state is on disk; no process runs.",
    VmState.STOPPING: "The guest was asked to shut down.",
    VmState.READY: "On, a clone that is loaded and has not executed yet: it waits in a pool, and no list shows it.",
}

_OPERATIONS = """
## What you ask for

Each cell is the state that follows; an empty one is refused, with the remedy. Power-off and restart lose the frozen
state.

"""

_HAPPENINGS = """
## What happens by itself

"""

_ERRORS = """\
# Errors

Generated from the program: `python tools/docs.py`.

Every error is one sentence that says what is wrong and, where there is one, a second that says what to do. On the
command line they are `error:` and `hint:` on standard error. Over HTTP they are
`{"code", "message", "hint", "fields"}` with the status below. In Python they are exceptions of `ramet.errors`, the
same in the client as in the daemon. What is refused changes nothing.

| Code | Class | HTTP | Exit | Meaning |
|---|---|---|---|---|
"""


def lifecycle() -> str:
    states = "".join(f"| `{state.value}` | {_MEANINGS[state]} |\n" for state in VmState)
    return _LIFECYCLE + states + _OPERATIONS + _matrix(list(Operation)) + _HAPPENINGS + _matrix(list(Happening))


def _matrix(moves: list[Operation] | list[Happening]) -> str:
    lines = ["| | " + " | ".join(f"`{state.value}`" for state in VmState) + " |", "|---" * (len(VmState) + 1) + "|"]
    for move in moves:
        found = [TRANSITIONS.get((state, move)) for state in VmState]
        lines.append(f"| {move.value} | " + " | ".join(state.value if state else "" for state in found) + " |")
    return "\n".join(lines) + "\n"


def error_page() -> str:
    meanings = _meanings()
    rows = [
        f"| `{cls.code}` | `{cls.__name__}` | {cls.http_status} | {cls.exit_code} | {meanings[cls.__name__]} |\n"
        for cls in _classes(RametError)
        if cls is not RametError and cls.__module__ == RametError.__module__  # others are kinds of these
    ]
    return _ERRORS + "".join(rows)


def _classes(cls: type[RametError]) -> Iterator[type[RametError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _classes(sub)


def _meanings() -> dict[str, str]:
    """Class -> what stands beside it in the tree at the top of the module."""
    found = {}
    for line in (inspect.getdoc(errors) or "").splitlines():
        name, _, rest = line.lstrip(" │├└─").partition(" ")
        if name.endswith("Error") and rest:
            text = rest.strip().rsplit("(", 1)[0].strip() if rest.rstrip().endswith(")") and "   " in rest else rest
            found[name] = text.strip().capitalize().replace("qemu", "QEMU") + "."
    return {**found, "PeerError": "A program or guest that we talk to broke its contract."}


def generated() -> dict[Path, str]:
    """Every page made here and what stands in it."""
    return {DOCS / "lifecycle.md": lifecycle(), DOCS / "errors.md": error_page()}


def main() -> int:
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{'stale' if '--check' in sys.argv else 'wrote'}: {path.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            path.write_text(text)
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
