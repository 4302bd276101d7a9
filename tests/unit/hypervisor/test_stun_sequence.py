"""One stun against a fake source: what it does, and that the source is what it was before after every failure."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import (
    ForkError,
    QemuError,
    RametError,
    StateError,
    StunTooLongError,
    TaskCancelledError,
)
from ramet.hypervisor.stun_plan import PristineCheck, SnapshotStep, StunPlan
from ramet.hypervisor.stun_sequence import StunSequence
from tests.unit.hypervisor.stun_kit import (
    DieError,
    DropError,
    RefuseError,
    Source,
    Told,
    eventfd,
    failing,
    once,
)

STEPS = {"stop": "stop", "transaction": "snapshot", "migrate": "state", "cont": "resume"}
"""Command of QEMU's -> the stun's step that needs it."""


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with Source(tmp_path) as source:
        yield source


@pytest.fixture
def wake() -> Iterator[int]:
    with eventfd() as fd:
        yield fd


def stun(plan: StunPlan, wake: int, told: Told | None = None) -> Told:
    told = told or Told()
    StunSequence(plan, told, wake).run()
    return told


def failure(plan: StunPlan, wake: int, kind: type[RametError], told: Told | None = None) -> dict[str, Any]:
    with pytest.raises(kind) as caught:
        stun(plan, wake, told)
    assert "done" not in (told or Told()).names
    return caught.value.fields


def test_a_live_stun_does_everything_in_order(source: Source, wake: int) -> None:
    plan = source.plan(forks=(source.request("one"), source.request("two")))
    told = stun(plan, wake)
    changing = [c for c in source.qemu.commands if c in ("getfd", "stop", "transaction", "migrate", "cont")]
    assert changing == ["getfd", "stop", "transaction", "migrate", "cont"]
    assert told.names == ["began", "stopped", "forked", "forked", "done"]
    assert source.qemu.status == "running"
    assert source.qemu.backing == [("overlay", "base")]
    assert len(source.library.alive()) == 2
    assert [fields["pid"] for name, fields in told.messages if name == "forked"] == source.library.alive()
    done = told.fields("done")
    assert done["snapshotted"] == [["base", "overlay"]]
    assert done["state_bytes"] == len(b"state")
    timings = done["timings"]
    assert timings["total"] >= sum(timings[step] for step in ("stop", "snapshot", "state", "fork", "resume")) - 0.01
    assert min(timings.values()) > 0


def test_disks_move_in_one_transaction(source: Source, wake: int) -> None:
    steps = tuple(SnapshotStep(f"n{i}", f"o{i}") for i in range(3))
    stun(source.plan(snapshots=steps), wake)
    assert source.qemu.commands.count("transaction") == 1
    assert source.qemu.backing == [("o0", "n0"), ("o1", "n1"), ("o2", "n2")]


def test_a_held_source_stays_stopped(source: Source, wake: int) -> None:
    told = stun(source.plan(hold=True, forks=()), wake)
    assert source.qemu.status == "postmigrate"
    assert told.fields("done")["timings"]["resume"] == 0.0
    assert "cont" not in source.qemu.commands


def test_a_source_in_another_state_is_left_alone(source: Source, wake: int) -> None:
    source.qemu.status = "io-error"
    fields = failure(source.plan(), wake, StateError)
    assert fields == {
        "state": "io-error",
        "operation": "stun",
        "step": "prepare",
        "reason": "state",
        "restored": True,
        "status": "io-error",
        "snapshotted": [],
        "disks_known": True,
    }
    assert "stop" not in source.qemu.commands


def test_a_paused_source_can_be_frozen_and_is_not_resumed_when_that_fails(source: Source, wake: int) -> None:
    source.qemu.status = "paused"
    source.qemu.hooks["transaction"] = failing(RefuseError)
    fields = failure(source.plan(hold=True, forks=(), expect=("running", "paused")), wake, QemuError)
    assert (fields["restored"], source.qemu.status) == (True, "paused")
    assert "cont" not in source.qemu.commands
    stun(source.plan(hold=True, forks=(), expect=("running", "paused")), wake)
    assert source.qemu.status == "postmigrate"


def test_a_source_that_cannot_be_saved_is_never_stopped(source: Source, wake: int) -> None:
    source.qemu.blocked = ["a device is passed through"]
    fields = failure(source.plan(), wake, QemuError)
    assert (fields["step"], fields["reason"], fields["restored"]) == ("prepare", "blocked", True)
    assert "stop" not in source.qemu.commands


def test_a_source_that_stops_by_itself_at_the_stop_is_not_resumed(source: Source, wake: int) -> None:
    def full_disk() -> None:
        source.qemu.status = "io-error"

    source.qemu.hooks["stop"] = once(full_disk)
    fields = failure(source.plan(), wake, StateError)
    assert (fields["step"], fields["status"], source.qemu.status) == ("stop", "io-error", "io-error")
    assert "cont" not in source.qemu.commands


@pytest.mark.parametrize(("command", "step"), STEPS.items())
def test_a_refused_command_restores(source: Source, wake: int, command: str, step: str) -> None:
    source.qemu.hooks[command] = failing(RefuseError)
    told = Told()
    fields = failure(source.plan(), wake, QemuError, told)
    assert (fields["step"], fields["restored"], source.qemu.status) == (step, True, "running")
    assert fields["snapshotted"] == ([] if command in ("stop", "transaction") else [["base", "overlay"]])
    source.library.assert_no_child()


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_migration_that_fails_restores(source: Source, wake: int, end: str) -> None:
    source.qemu.migration_ends = end
    fields = failure(source.plan(), wake, QemuError)
    assert (fields["step"], fields["restored"], source.qemu.status) == ("state", True, "running")


@pytest.mark.parametrize(("command", "step"), STEPS.items())
def test_a_lost_connection_is_made_up_for_on_another(source: Source, wake: int, command: str, step: str) -> None:
    source.qemu.hooks[command] = failing(DropError)
    fields = failure(source.plan(), wake, QemuError)
    assert (fields["step"], fields["restored"], source.qemu.status) == (step, True, "running")
    assert fields["snapshotted"] == [list(pair)[::-1] for pair in source.qemu.backing]
    source.library.assert_no_child()


@pytest.mark.parametrize(("command", "step"), STEPS.items())
def test_a_dead_source_is_told_as_such(source: Source, wake: int, command: str, step: str) -> None:
    source.qemu.hooks[command] = failing(DieError)
    """Its disks count as moved on as soon as they may have: an empty overlay does no harm, a lost one would."""
    fields = failure(source.plan(), wake, QemuError)
    assert (fields["step"], fields["restored"], fields["disks_known"]) == (step, False, True)
    assert fields["snapshotted"] == ([] if command == "stop" else [["base", "overlay"]])
    source.library.assert_no_child()


def test_disks_are_not_known_when_qemu_no_longer_answers(
    source: Source, wake: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ramet.hypervisor.stun_sequence.RESTORE_TIMEOUT_S", 0.1)
    source.qemu.hooks["transaction"] = once(lambda: time.sleep(0.5))
    fields = failure(source.plan(bound_ms=50.0), wake, StunTooLongError)
    assert (fields["restored"], fields["disks_known"], fields["snapshotted"]) == (False, False, [])


@pytest.mark.parametrize(
    "nonsense",
    [
        b"{",
        b"[]",
        b"7",
        b'{"id": "x"}',
        b'{"event": "MIGRATION"}',
        b'{"event": "MIGRATION", "data": 5}',
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("command", ["stop", "migrate"])
def test_a_qemu_gone_mad_does_not_take_the_helper_with_it(
    source: Source, wake: int, command: str, nonsense: bytes
) -> None:
    """A guest may have broken out of it: whatever it says, the helper ends the stun in order."""
    source.qemu.chatter[command] = nonsense
    try:
        stun(source.plan(bound_ms=2000.0), wake)
    except QemuError as exc:
        restored = exc.fields["restored"]
    else:
        restored = True
    assert restored
    assert source.qemu.status == "running"


def test_a_snapshot_whose_answer_is_lost_is_found_in_the_graph(source: Source, wake: int) -> None:
    def done_but_dropped() -> None:
        source.qemu.do_transaction([{"data": {"node": "base", "overlay": "overlay"}}])
        raise DropError

    source.qemu.hooks["transaction"] = once(done_but_dropped)
    fields = failure(source.plan(), wake, QemuError)
    assert fields["snapshotted"] == [["base", "overlay"]]
    assert (fields["restored"], source.qemu.status) == (True, "running")


@pytest.mark.parametrize(("command", "step"), [*STEPS.items(), ("fork", "resume")])
def test_the_daemons_end_restores(source: Source, wake: int, command: str, step: str) -> None:
    """The helper's main thread sets the event when the connection ends; here, while a command is under way.

    It is not looked at while the library forks: that is bounded by itself, and a child half made is worse.
    """
    hooks = source.library.hooks if command == "fork" else source.qemu.hooks
    hooks[command] = once(lambda: os.eventfd_write(wake, 1))
    fields = failure(source.plan(), wake, TaskCancelledError)
    assert (fields["step"], fields["restored"], source.qemu.status) == (step, True, "running")
    source.library.assert_no_child()


@pytest.mark.parametrize("what", ["began", "stopped", "forked", "done"])
@pytest.mark.parametrize("hold", [False, True])
def test_a_daemon_that_cannot_be_told_restores(source: Source, wake: int, what: str, hold: bool) -> None:
    class Deaf(Told):
        def __call__(self, told: str, fields: dict[str, Any], handed: Any = (), /) -> None:
            if told == what:
                raise BrokenPipeError
            super().__call__(told, fields, handed)

    fields = failure(source.plan(hold=hold), wake, TaskCancelledError, Deaf())
    assert (fields["restored"], source.qemu.status) == (True, "running")
    source.library.assert_no_child()


@pytest.mark.parametrize(("command", "step"), [("stop", "stop"), ("transaction", "snapshot"), ("migrate", "state")])
def test_the_bound_ends_a_stun(source: Source, wake: int, command: str, step: str) -> None:
    source.qemu.hooks[command] = once(lambda: time.sleep(0.3))
    fields = failure(source.plan(bound_ms=60.0), wake, StunTooLongError)
    assert (fields["step"], fields["reason"], fields["bound_ms"]) == (step, "bound", 60.0)
    assert (fields["restored"], source.qemu.status) == (True, "running")


def test_a_migration_under_way_is_ended_before_the_source_goes_on(source: Source, wake: int) -> None:
    """A source resumed in the middle of it would be stopped again."""
    source.qemu.migration_ends = "active"
    fields = failure(source.plan(bound_ms=50.0), wake, StunTooLongError)
    assert (fields["step"], fields["restored"], source.qemu.status) == ("state", True, "running")
    assert source.qemu.commands.count("migrate_cancel") == 1


def test_the_bound_ends_a_fork(source: Source, wake: int) -> None:
    source.library.hooks["fork"] = once(lambda: time.sleep(0.3))
    fields = failure(source.plan(bound_ms=100.0), wake, StunTooLongError)
    assert (fields["step"], fields["restored"], source.qemu.status) == ("fork", True, "running")


def test_a_refused_fork_restores_and_ends_its_elders(source: Source, wake: int) -> None:
    count = [0]

    def second_fails() -> None:
        count[0] += 1
        if count[0] == 2:
            raise RefuseError("no memory")

    source.library.hooks["fork"] = second_fails
    plan = source.plan(forks=(source.request("one"), source.request("two")))
    fields = failure(plan, wake, ForkError)
    assert (fields["step"], fields["errno"], fields["restored"]) == ("fork", 12, True)
    assert source.qemu.status == "running"
    assert [child.wait(5) for child in source.library.children] == [-9]


def test_a_child_that_never_gets_to_its_program_fails_the_stun(source: Source, wake: int) -> None:
    source.library.hooks["leap"] = failing(RefuseError)
    fields = failure(source.plan(), wake, ForkError)
    assert (fields["step"], fields["restored"], source.qemu.status) == ("fork", True, "running")


def test_without_a_fork_socket_nothing_is_stopped(source: Source, wake: int, tmp_path: Path) -> None:
    fields = failure(source.plan(fork_path=str(tmp_path / "none")), wake, ForkError)
    assert (fields["step"], fields["restored"]) == ("prepare", True)
    assert source.qemu.commands == []


def test_without_a_monitor_nothing_happens(source: Source, wake: int, tmp_path: Path) -> None:
    fields = failure(source.plan(qmp_path=str(tmp_path / "none")), wake, QemuError)
    assert (fields["step"], fields["restored"]) == ("prepare", True)


def qcow2(path: Path, *io: str) -> PristineCheck:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1G"], check=True)
    for command in io:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, stdout=subprocess.DEVNULL)
    return PristineCheck(str(path))


def test_layers_without_writes_need_no_snapshot(source: Source, wake: int, tmp_path: Path) -> None:
    stun(source.plan(snapshots=(), pristine=(qcow2(tmp_path / "a"), qcow2(tmp_path / "b"))), wake)
    assert "transaction" not in source.qemu.commands
    assert source.qemu.status == "running"


def test_a_layer_that_was_written_to_makes_the_plan_stale(source: Source, wake: int, tmp_path: Path) -> None:
    checks = (qcow2(tmp_path / "a"), qcow2(tmp_path / "b", "write 512M 64k"))
    fields = failure(source.plan(pristine=checks), wake, StateError)
    assert (fields["step"], fields["reason"], fields["path"]) == ("pristine", "stale", str(tmp_path / "b"))
    assert (fields["restored"], fields["snapshotted"], source.qemu.status) == (True, [], "running")
    assert "migrate" not in source.qemu.commands


def test_a_layer_that_is_missing_stops_nothing(source: Source, wake: int, tmp_path: Path) -> None:
    with pytest.raises(RametError) as caught:
        stun(source.plan(pristine=(PristineCheck(str(tmp_path / "none")),)), wake)
    assert (caught.value.fields["step"], source.qemu.commands) == ("prepare", [])
