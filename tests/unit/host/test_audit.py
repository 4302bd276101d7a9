"""The audit log: whole lines in order, bounded, and never a password."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ramet.host import audit as audit_module
from ramet.host.audit import Audit


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


async def test_what_is_noted_stands_there_in_order(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with Audit.open(path, 1 << 20) as audit:
        audit.note("vsphere.on", uid=0, via="socket", result="ok", at=0.0)
        audit.note("PowerOnVM_Task", user="eve", peer="10.0.0.7", object="vm-17", name=None, result="NoPermission")
    first, second = lines(path)
    assert first == {"at": "1970-01-01T00:00:00.000+00:00", "action": "vsphere.on", "uid": 0, "via": "socket"} | {
        "result": "ok"
    }
    assert second.keys() == {"at", "action", "user", "peer", "object", "result"}
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_line_that_a_crash_tore_stays_alone_and_more_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"at": "2026')
    async with Audit.open(path, 1 << 20) as audit:
        audit.note("user.add", object="eve\nforged line")
    torn, whole = path.read_text().splitlines()
    assert torn == '{"at": "2026'
    assert json.loads(whole)["object"] == "eve\nforged line"


async def test_old_lines_are_put_aside_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(6):
        async with Audit.open(path, 3 * 1000) as audit:
            audit.note("x", number=number, text="x" * 256)
            for _ in range(3):
                audit.note("y", text="y" * 256)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["audit.jsonl.1", "audit.jsonl.2"]
    assert lines(tmp_path / "audit.jsonl.1")[0]["number"] == 5
    assert lines(tmp_path / "audit.jsonl.2")[0]["number"] == 4


async def test_more_than_fits_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MOST_UNWRITTEN", 3)
    async with Audit.open(tmp_path / "a", 1 << 20) as audit:
        for number in range(5):
            audit.note("x", number=number)
    assert [line.get("number", line.get("lines")) for line in lines(tmp_path / "a")] == [0, 1, 2, 2]


async def test_a_log_that_cannot_be_written_hinders_nobody(tmp_path: Path) -> None:
    async with Audit.open(tmp_path / "no" / "a", 1 << 20) as audit:
        audit.note("x")
