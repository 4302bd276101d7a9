"""The audit log: whole lines in order, bounded, and never a password."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ramet.host import audit as audit_module
from ramet.host.audit import MOST_STRANGERS, Audit, Strangers


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


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(audit: Audit, peer: str, times: int) -> None:
    for _ in range(times):
        audit.note("session.login", user="root", via="vsphere", peer=peer, result="InvalidLogin")


async def test_a_stranger_cannot_push_the_others_lines_out(tmp_path: Path) -> None:
    path, clock = tmp_path / "a", Clock()
    async with Audit.open(path, 1 << 20, clock) as audit:
        refused(audit, "10.0.0.66", 5000)
        refused(audit, "10.0.0.7", 3)
        for _ in range(30):
            audit.note("PowerOnVM_Task", user="eve", via="vsphere", peer="10.0.0.66", session="s", result="ok")
            audit.note("user.add", uid=0, via="socket", result="ok")
    found = [(line["action"], line.get("peer"), line.get("lines")) for line in lines(path)]
    assert found.count(("session.login", "10.0.0.66", None)) == 20
    assert found.count(("session.login", "10.0.0.7", None)) == 3
    assert found.count(("PowerOnVM_Task", "10.0.0.66", None)) == 30
    assert found.count(("user.add", None, None)) == 30
    assert found[-1] == ("audit.strangers", "10.0.0.66", 4980)
    assert len(found) == 84


async def test_what_was_left_out_is_told_when_the_minute_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "WINDOW_S", 0.02)
    monkeypatch.setattr(audit_module, "_GATHER_S", 0.0)
    loop, told, write = asyncio.get_running_loop(), asyncio.Event(), audit_module._write

    def seen(path: Path, data: bytes, quota_bytes: int) -> None:
        write(path, data, quota_bytes)
        if b'"audit.strangers"' in data:
            loop.call_soon_threadsafe(told.set)

    monkeypatch.setattr(audit_module, "_write", seen)
    async with Audit.open(tmp_path / "a", 1 << 20) as audit:
        await asyncio.sleep(0)  # it waits now, for nothing
        refused(audit, "10.0.0.66", 25)
        async with asyncio.timeout(10):
            await told.wait()


def test_each_minute_begins_anew() -> None:
    strangers = Strangers()
    for minute in range(3):
        now = minute * 60.0
        assert [strangers.admits("a", now) for _ in range(22)] == [True] * 20 + [False] * 2
        assert strangers.next_s(now + 59) == 1.0
        assert strangers.over(now + 59) == []
        assert strangers.over(now + 60) == [("a", 2)]
        assert strangers.next_s(now + 60) is None
    assert strangers.admits("b", 180.0)
    assert strangers.over(240.0) == []
    assert strangers._known == {}


def test_who_has_many_addresses_is_one_stranger() -> None:
    strangers = Strangers()
    assert sum(strangers.admits(f"2001:db8::{number:x}%eth0", 0.0) for number in range(100)) == 20
    assert strangers.over(None) == [("2001:db8::/64", 80)]
    assert sum(strangers.admits(peer, 0.0) for peer in ["::ffff:10.0.0.7", "10.0.0.7"] * 20) == 20


def test_strangers_who_are_many_take_bounded_room() -> None:
    strangers = Strangers()
    written = sum(strangers.admits(f"10.{number >> 8}.{number & 255}.1", 0.0) for number in range(5000))
    assert written == MOST_STRANGERS + 20
    assert len(strangers._known) == MOST_STRANGERS + 1
    assert strangers.over(None) == [("others", 5000 - written)]
    assert strangers.admits("10.0.0.1", 61.0)
