"""The monitor session against a server that can be told how to fail."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import Message

from ramet.errors import DeadlineError, QemuError, UnsupportedError
from ramet.hypervisor.blocknodes import DiskChain, LayerFile
from ramet.hypervisor.qmp import QmpSession
from ramet.model.machine import Disk, Nic
from tests.unit.hypervisor.plan_kit import open_fds
from tests.unit.hypervisor.qmp_kit import FakeMonitor, RefuseError

WAIT_S = 10.0


@pytest.fixture
def monitor() -> FakeMonitor:
    return FakeMonitor()


@pytest.fixture
async def session(monitor: FakeMonitor, tmp_path: Path) -> AsyncIterator[QmpSession]:
    async with monitor.serve(tmp_path / "qmp"), await QmpSession.connect(tmp_path / "qmp", WAIT_S) as session:
        yield session


def memory_file(content: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, content)
    return fd


async def test_a_value_comes_back(monitor: FakeMonitor, session: QmpSession) -> None:
    monitor.answers["query-status"] = {"status": "running", "running": True}
    status = await session.status()
    assert (status.status, status.running) == ("running", True)


async def test_a_refusal_is_told_in_qemus_words(session: QmpSession) -> None:
    with pytest.raises(QemuError, match=r"QEMU refused cont: The command cont has not been found\.") as caught:
        await session.cont()
    assert caught.value.fields["command"] == "cont"


async def test_silence_is_bounded_and_the_session_goes_on(monitor: FakeMonitor, session: QmpSession) -> None:
    monitor.answers["query-status"] = None
    with pytest.raises(DeadlineError, match="did not answer query-status"):
        await session.execute("query-status", timeout_s=0.01)
    monitor.answers["cont"] = {}
    await session.cont()


async def test_a_late_answer_is_nobody_elses(monitor: FakeMonitor, session: QmpSession) -> None:
    late: list[dict[str, Any]] = []
    monitor.answers["stop"] = lambda _: late.append({"return": "late", "id": "__qmp#00000"})
    with pytest.raises(DeadlineError):
        await session.execute("stop", timeout_s=0.01)
    monitor.send(late[0])
    monitor.answers["query-name"] = {"name": "right"}
    assert await session.execute("query-name") == {"name": "right"}


async def test_a_death_during_a_command_is_said_and_told_to_waiters(monitor: FakeMonitor, session: QmpSession) -> None:
    monitor.answers["stop"] = lambda _: monitor.drop()
    with pytest.raises(QemuError, match="ended during stop") as caught:
        await session.stop()
    assert caught.value.fields["lost"]
    await asyncio.wait_for(session.wait_lost(), WAIT_S)
    assert not session.is_connected
    with pytest.raises(QemuError, match="ended during cont"):
        await session.cont()


async def test_commands_of_several_tasks_do_not_mix(monitor: FakeMonitor, session: QmpSession) -> None:
    monitor.answers["echo"] = lambda arguments: arguments
    answers = await asyncio.gather(*(session.execute("echo", {"n": n}) for n in range(50)))
    assert [answer["n"] for answer in answers] == list(range(50))


async def test_descriptors_go_with_their_commands(monitor: FakeMonitor, session: QmpSession) -> None:
    monitor.answers["getfd"] = {}
    fds = [memory_file(str(n).encode()) for n in range(20)]
    try:
        await asyncio.gather(*(session.execute_with_fd(fd, "getfd", {"fdname": f"{n}"}) for n, fd in enumerate(fds)))
    finally:
        for fd in fds:
            os.close(fd)
    assert [arguments["fdname"].encode() for _, arguments in monitor.asked[1:]] == monitor.received


async def test_events_come_in_order_and_filtered(monitor: FakeMonitor, session: QmpSession) -> None:
    with session.events("STOP", "RESUME") as events:
        monitor.event("STOP")
        monitor.event("RTC_CHANGE", offset=1)
        monitor.event("RESUME")
        assert [(await events.next(WAIT_S) or {})["event"] for _ in range(2)] == ["STOP", "RESUME"]
        with pytest.raises(DeadlineError):
            await events.next(0.01)


async def test_events_end_with_the_connection(monitor: FakeMonitor, session: QmpSession) -> None:
    with session.events() as events:
        monitor.event("SHUTDOWN", guest=True, reason="guest-reset")
        monitor.drop()
        seen = [event["event"] async for event in events]
    assert seen == ["SHUTDOWN"]


async def test_no_event_is_kept_that_was_heard_or_that_nobody_waits_for(
    monitor: FakeMonitor, session: QmpSession
) -> None:
    """A source that is cloned for years, and a guest that resets its clock all day, cost no memory."""
    with session.events("STOP") as events:
        for _ in range(20):
            monitor.event("RTC_CHANGE", offset=1)
            monitor.event("STOP")
            assert await events.next(WAIT_S)
        gc.collect()
        kept = [one for one in gc.get_objects() if isinstance(one, Message) and "event" in one]
    assert len(kept) < 5


async def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(QemuError, match="cannot be reached"):
        await QmpSession.connect(tmp_path / "nobody", WAIT_S)


async def test_a_monitor_that_does_not_greet_is_given_up(tmp_path: Path) -> None:
    before = open_fds()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mute"))
        listener.listen()
        with pytest.raises(DeadlineError, match="did not answer"):
            await QmpSession.connect(tmp_path / "mute", 0.05)
    assert open_fds() == before


async def test_a_session_leaves_nothing_open(monitor: FakeMonitor) -> None:
    with tempfile.TemporaryDirectory() as name:
        before = open_fds()
        async with monitor.serve(Path(name) / "qmp"):
            session = await QmpSession.connect(Path(name) / "qmp", WAIT_S)
            await session.close()
            await session.close()
        assert set(open_fds()) == set(before)


# -- commands ----------------------------------------------------------------------------------------------------------


def fdsets(*sets: tuple[int, dict[int, str]]) -> list[dict[str, Any]]:
    return [
        {"fdset-id": number, "fds": [{"fd": fd, "opaque": opaque} for fd, opaque in fds.items()]}
        for number, fds in sets
    ]


async def test_a_layer_that_cannot_be_added_leaves_nothing(
    monitor: FakeMonitor, session: QmpSession, tmp_path: Path
) -> None:
    def add(arguments: dict[str, Any]) -> Any:
        if arguments["driver"] == "qcow2":
            raise RefuseError("Image is corrupt")
        return {}

    (tmp_path / "new.qcow2").write_bytes(b"layer")
    monitor.answers |= {
        "add-fd": {"fdset-id": 5, "fd": 30},
        "blockdev-add": add,
        "blockdev-del": {},
        "remove-fd": {},
        "query-fdsets": fdsets((5, {30: "f-new:rw", 31: "f-new"})),
    }
    before = open_fds()
    with pytest.raises(QemuError, match="Image is corrupt"):
        await session.add_layer_node(LayerFile("new", tmp_path / "new.qcow2", writable=True))
    assert monitor.commands == [
        *("add-fd", "add-fd", "blockdev-add", "blockdev-add"),
        *("blockdev-del", "query-fdsets", "remove-fd"),
    ]
    assert monitor.asked[-1] == ("remove-fd", {"fdset-id": 5})
    assert open_fds() == before


async def test_a_chain_that_cannot_be_added_takes_its_layers_along(
    monitor: FakeMonitor, session: QmpSession, tmp_path: Path
) -> None:
    layers = []
    for n, name in enumerate(("top", "middle", "there")):
        (tmp_path / name).touch()
        layers.append(LayerFile(name, tmp_path / name, writable=n == 0))
    monitor.answers |= {
        "add-fd": {"fdset-id": 5, "fd": 30},
        "blockdev-add": lambda a: RefuseError("no") if a["node-name"] == "q-top" else {},
        "blockdev-del": {},
        "remove-fd": {},
        "query-fdsets": [],
        "query-named-block-nodes": [{"node-name": "q-there"}, {"node-name": "f-there"}],
    }
    with pytest.raises(QemuError, match="no"):
        await session.add_chain(DiskChain(Disk(id="disk1", layer="top", size_bytes=1), tuple(layers)))
    deleted = [a["node-name"] for command, a in monitor.asked if command == "blockdev-del"]
    assert deleted == ["f-top", "q-middle", "f-middle"]


async def test_sealing_gives_up_the_writable_descriptor_only(
    monitor: FakeMonitor, session: QmpSession, tmp_path: Path
) -> None:
    monitor.answers |= {
        "query-fdsets": fdsets((1, {8: "console-log"}), (3, {19: "f-base", 20: "f-base:rw"})),
        "blockdev-reopen": {},
        "remove-fd": {},
    }
    await session.seal_layer(LayerFile("base", tmp_path / "base", writable=True))
    reopened = monitor.asked[-2][1]["options"][0]
    assert (reopened["node-name"], reopened["read-only"], reopened["filename"]) == ("f-base", True, "/dev/fdset/3")
    assert monitor.asked[-1] == ("remove-fd", {"fdset-id": 3, "fd": 20})


async def test_a_nic_that_is_refused_leaves_no_backend(monitor: FakeMonitor, session: QmpSession) -> None:
    monitor.answers |= {"getfd": {}, "netdev_add": {}, "netdev_del": {}, "device_add": RefuseError("no slot")}
    fd = memory_file(b"tap")
    try:
        with pytest.raises(QemuError, match="no slot"):
            await session.hotplug_nic(Nic(id="net1"), fd)
    finally:
        os.close(fd)
    assert monitor.commands == ["getfd", "netdev_add", "device_add", "netdev_del"]


async def test_what_has_no_slot_is_refused_before_anything_is_done(monitor: FakeMonitor, session: QmpSession) -> None:
    with pytest.raises(UnsupportedError, match=r"net4 cannot be added while the VM runs.*Stop the VM"):
        await session.hotplug_nic(Nic(id="net4"), None)
    disk = Disk(id="disk4", layer="top", size_bytes=1)
    with pytest.raises(UnsupportedError, match="disk4"):
        await session.hotplug_disk(DiskChain(disk, (LayerFile("top", Path("/x"), True),)))
    assert monitor.commands == []


async def test_unplugging_waits_for_the_guest(monitor: FakeMonitor, session: QmpSession) -> None:
    def delete(_: Any) -> Any:
        monitor.event("DEVICE_DELETED", path="/machine/peripheral/other", device="other")
        monitor.event("DEVICE_DELETED", path="/machine/peripheral/net1", device="net1")
        return {}

    monitor.answers |= {"device_del": delete, "netdev_del": {}}
    await session.unplug_nic("net1", WAIT_S)
    assert monitor.asked[-1] == ("netdev_del", {"id": "host-net1"})
    monitor.answers["device_del"] = {}
    with pytest.raises(DeadlineError, match="did not give disk1 back"):
        await session.unplug_device("disk1", 0.01)


async def test_a_state_that_is_refused_says_why(monitor: FakeMonitor, session: QmpSession) -> None:
    def load(_: Any) -> Any:
        monitor.event("MIGRATION", status="active")
        monitor.event("MIGRATION", status="failed")
        return {}

    monitor.answers |= {
        "getfd": {},
        "migrate-incoming": load,
        "query-migrate": {"status": "failed", "error-desc": "Unknown section"},
    }
    fd = memory_file(b"state")
    try:
        with pytest.raises(QemuError, match=r"not taken over: Unknown section\."):
            await session.incoming(fd, timeout_s=WAIT_S)
    finally:
        os.close(fd)
    assert monitor.received == [b"state"]


async def test_saving_waits_until_qemu_lets_the_guest_continue(monitor: FakeMonitor, session: QmpSession) -> None:
    """QEMU reports "completed" while it still is in finish-migrate, where it refuses `cont`."""
    states = ["finish-migrate", "finish-migrate", "postmigrate"]

    def save(_: Any) -> Any:
        monitor.event("MIGRATION", status="completed")
        return {}

    monitor.answers |= {
        "getfd": {},
        "migrate": save,
        "migrate-set-capabilities": {},
        "query-status": lambda _: {"status": states.pop(0), "running": False},
    }
    fd = memory_file(b"")
    try:
        await session.migrate_to_fd(fd, with_ram=True, timeout_s=WAIT_S)
    finally:
        os.close(fd)
    assert states == []
    capabilities = [a["capabilities"][0]["state"] for c, a in monitor.asked if c == "migrate-set-capabilities"]
    assert capabilities == [False, True]


async def test_saving_that_takes_too_long_is_cancelled(monitor: FakeMonitor, session: QmpSession) -> None:
    monitor.answers |= {"getfd": {}, "migrate": {}, "migrate_cancel": {}}
    fd = memory_file(b"")
    try:
        with pytest.raises(DeadlineError):
            await session.migrate_to_fd(fd, with_ram=False, timeout_s=0.02)
    finally:
        os.close(fd)
    assert monitor.commands[-1] == "migrate_cancel"
