"""Disks are written back before the stun, until what is left is short."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ramet.clone import moments


class Disk:
    """Writing back takes what is left of `took_s`, one after the other; then nothing."""

    def __init__(self, *took_s: float) -> None:
        self.took_s = list(took_s)
        self.now = 0.0
        self.paths: list[Path] = []

    def monotonic(self) -> float:
        return self.now

    def write_back(self, path: Path) -> None:
        self.paths.append(path)
        self.now += self.took_s.pop(0) if self.took_s else 0.0


@pytest.mark.parametrize(
    ("took_s", "rounds"),
    [((), 1), ((0.005,), 1), ((0.4,), 2), ((0.4, 0.1), 3), ((3.0, 2.0, 1.0, 1.0, 1.0), 4)],
)
async def test_a_disk_is_written_back_until_that_is_short_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, took_s: tuple[float, ...], rounds: int
) -> None:
    disk = Disk(*took_s)
    monkeypatch.setattr(moments, "time", disk)
    monkeypatch.setattr(moments, "_write_back", disk.write_back)
    layers = SimpleNamespace(path=lambda layer: Path("/layers") / layer)
    live: Any = SimpleNamespace(rooms=SimpleNamespace(layers=layers))
    turn: Any = SimpleNamespace(disk=SimpleNamespace(layer="root"))

    await moments._flush(live, (turn,))

    assert disk.paths == [Path("/layers/root")] * rounds
