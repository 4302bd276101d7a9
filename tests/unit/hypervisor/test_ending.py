"""Reading from the event log how a guest ended."""

from __future__ import annotations

import json
from pathlib import Path

from ramet.hypervisor.ending import read_ending

GREETING = json.dumps({"QMP": {"version": {}}})


def shutdown(reason: str, *, guest: bool = True) -> str:
    return json.dumps(
        {
            "timestamp": {"seconds": 100, "microseconds": 500000},
            "event": "SHUTDOWN",
            "data": {"guest": guest, "reason": reason},
        }
    )


def write(directory: Path, *lines: str) -> Path:
    (directory / "events.log").write_text("".join(line + "\n" for line in lines))
    return directory


def test_a_reset_is_told_from_a_power_off(tmp_path: Path) -> None:
    reset = read_ending(write(tmp_path, GREETING, shutdown("guest-reset")))
    assert reset is not None
    assert reset.wants_restart
    assert reset.at == 100.5
    off = read_ending(write(tmp_path, GREETING, shutdown("guest-shutdown")))
    assert off is not None
    assert not off.wants_restart


def test_an_earlier_process_does_not_speak_for_a_later_one(tmp_path: Path) -> None:
    assert read_ending(write(tmp_path, GREETING, shutdown("guest-reset"), GREETING)) is None


def test_no_log_and_no_end_are_no_ending(tmp_path: Path) -> None:
    assert read_ending(tmp_path) is None
    assert read_ending(write(tmp_path, GREETING, '{"return": {}}')) is None


def test_nonsense_is_passed_over(tmp_path: Path) -> None:
    lines = ("{", "[]", "null", '{"event": "SHUTDOWN"}', '{"event": "SHUTDOWN", "timestamp": 3, "data": 4}')
    ending = read_ending(write(tmp_path, GREETING, shutdown("host-signal", guest=False), *lines))
    assert ending is not None
    assert ending.reason == "host-signal"


def test_a_log_that_a_guest_blew_up_is_read_from_its_end(tmp_path: Path) -> None:
    noise = json.dumps({"event": "RTC_CHANGE", "data": {"offset": 1}})
    ending = read_ending(write(tmp_path, GREETING, *[noise] * 20000, "x" * 20000, shutdown("guest-reset")))
    assert ending is not None
    assert ending.wants_restart
