import asyncio
from pathlib import Path

from ramet.host.events import EventLog
from ramet.model.host import Event
from ramet.model.machine import Machine, Vm


async def test_events_are_numbered_and_named(tmp_path: Path) -> None:
    vm = Vm(machine=Machine(name="web"))
    async with EventLog.open(tmp_path / "events.jsonl") as events:
        first = events.emit("vm.created", "VM 'web' was created.", vm=vm, path=Path("/x"))
        second = events.emit("host.warning", "Beware.")
    assert (first.seq, first.vm_id, first.vm_name, first.fields) == (1, vm.id, "web", {"path": "/x"})
    assert (second.seq, second.vm_id) == (2, None)


async def test_events_survive_a_restart_and_go_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with EventLog.open(path) as events:
        old = [events.emit("x", str(n)) for n in range(5)]
    async with EventLog.open(path) as events:
        assert events.recent(limit=10) == old
        assert events.recent(limit=2) == old[3:]
        assert events.recent(limit=10, since_seq=4) == old[4:]
        assert events.recent(limit=0) == []
        assert events.emit("x", "5").seq == 6


async def test_a_follower_sees_what_was_and_what_comes_and_ends_with_the_log(tmp_path: Path) -> None:
    seen: list[int] = []

    async def collect() -> None:
        async for event in events.follow(since_seq=1):
            seen.append(event.seq)

    async with EventLog.open(tmp_path / "events.jsonl") as events:
        for _ in range(3):
            events.emit("x", "y")
        follower = asyncio.ensure_future(collect())
        await asyncio.sleep(0)
        events.emit("x", "y")
        await asyncio.sleep(0)
        events.emit("x", "y")
    await asyncio.wait_for(follower, 10)
    assert seen == [2, 3, 4, 5]


async def test_following_from_now_leaves_out_the_past(tmp_path: Path) -> None:
    async with EventLog.open(tmp_path / "events.jsonl") as events:
        events.emit("x", "old")
        follower = asyncio.ensure_future(anext(events.follow()))
        await asyncio.sleep(0)
        events.emit("x", "new")
        assert (await asyncio.wait_for(follower, 10)).message == "new"


async def test_a_slow_follower_is_told_what_it_missed(tmp_path: Path) -> None:
    async with EventLog.open(tmp_path / "events.jsonl", capacity=10) as events:
        events.emit("x", "0")
        follower = events.follow(since_seq=0)
        assert (await anext(follower)).seq == 1
        for n in range(30):
            events.emit("x", str(n))
        lost = await anext(follower)
        assert (lost.kind, lost.fields) == ("events.lost", {"missed": 20})
        assert [(await anext(follower)).seq for _ in range(10)] == list(range(22, 32))


async def test_the_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for round_number in range(12):
        async with EventLog.open(path, capacity=10) as events:
            for _ in range(4):
                events.emit("x", str(round_number))
    assert len(path.read_bytes().splitlines()) <= 24
    async with EventLog.open(path, capacity=10) as events:
        assert [event.seq for event in events.recent(100)] == list(range(39, 49))


async def test_a_torn_line_costs_that_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with EventLog.open(path) as events:
        kept = [events.emit("x", "a"), events.emit("x", "b")]
    with path.open("ab") as file:
        file.write(b'{"seq":3,"at":1.0,"ki')
    async with EventLog.open(path) as events:
        assert events.recent() == kept
        kept.append(events.emit("x", "c"))
    async with EventLog.open(path) as events:
        assert events.recent() == kept


async def test_a_log_that_cannot_be_written_still_serves_memory(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with EventLog.open(path) as events:
        path.mkdir()
        event: Event = events.emit("x", "a")
        assert events.recent() == [event]
