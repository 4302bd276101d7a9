"""A naive disk, and the real tools beside it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from hypothesis import strategies as st

from ramet.storage import LayerStore

MIB = 1 << 20
CLUSTER = 1 << 16


@dataclass(frozen=True)
class Change:
    """What a guest does to its disk."""

    kind: Literal["write", "zero", "discard"]
    offset: int
    length: int
    fill: int = 0

    @property
    def command(self) -> str:
        option = {"write": f"write -P {self.fill}", "zero": "write -z", "discard": "discard"}[self.kind]
        return f"{option} {self.offset} {self.length}"

    def apply(self, model: bytearray) -> None:
        fill = self.fill if self.kind == "write" else 0
        model[self.offset : self.offset + self.length] = bytes([fill]) * self.length


def changes(size_bytes: int) -> st.SearchStrategy[list[Change]]:
    """Some changes to a disk. Discards are of whole clusters: what a partial one reads as is nobody's promise."""

    @st.composite
    def one(draw: st.DrawFn) -> Change:
        kind: Literal["write", "zero", "discard"] = draw(st.sampled_from(["write", "zero", "discard"]))
        unit = CLUSTER if kind == "discard" or draw(st.booleans()) else 512
        first = draw(st.integers(0, size_bytes // unit - 1))
        count = draw(st.integers(1, min(size_bytes // unit - first, 6)))
        return Change(kind, first * unit, count * unit, draw(st.integers(1, 255)))

    return st.lists(one(), max_size=4)


def write(path: Path, *done: Change) -> None:
    """Apply changes with qemu-io, in order, as one guest would."""
    if done:
        io = [word for change in done for word in ("-c", change.command)]
        tool("qemu-io", "-f", "qcow2", *io, str(path))


def contents(path: Path, form: str = "qcow2") -> bytes:
    """What a guest reads, through the whole chain."""
    with TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        tool("qemu-img", "convert", "-f", form, "-O", "raw", str(path), str(raw))
        return raw.read_bytes()


def info(path: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(tool("qemu-img", "info", "--output=json", str(path)))
    return answer


def tool(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


@contextmanager
def fresh_store() -> Iterator[LayerStore]:
    """A store of its own for one Hypothesis example (fixtures live as long as the whole test)."""
    with TemporaryDirectory() as folder:
        yield LayerStore(Path(folder) / "layers")


def files(store: LayerStore) -> set[str]:
    return {entry.name for entry in store.root.iterdir()}
