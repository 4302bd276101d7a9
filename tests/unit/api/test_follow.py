"""Commands that are followed over the API: line by line, with input and signals beside it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from ramet.api import Client
from ramet.errors import GuestError, NotFoundError
from ramet.model.execution import ExecEvent, FollowExec
from ramet.model.requests import CreateVm
from ramet.model.trying import TryCommand, TryReport
from tests.unit.api.api_kit import Served


@pytest.fixture
def web(client: Client) -> str:
    client.wait_task(client.create_vm(CreateVm(name="web")))
    return "web"


def kinds(events: Iterator[ExecEvent]) -> list[str]:
    return [event.kind for event in events]


def test_events_come_one_by_one_while_input_goes_in(client: Client, served: Served, web: str) -> None:
    request = FollowExec(argv=("cat",), stdin=True, env={"A": "b"})
    events = client.follow_exec(web, request)
    exec_id = next(events).id or ""
    for data in (b"one\n", bytes(range(256)) * 1000):
        client.write_exec(exec_id, data)
        assert base64.b64decode(next(events).data_base64 or "") == data
    client.write_exec(exec_id, b"", end=True)
    last = next(events)
    assert (last.kind, last.exit_code) == ("exited", 3)
    assert list(events) == []
    assert served.host.asked[-2:] == [("follow_exec", "web", request), ("ended",)]


def test_a_signal_goes_beside(client: Client, served: Served, web: str) -> None:
    events = client.follow_exec(web, FollowExec(argv=("cat",), stdin=True))
    next(events)
    sender = threading.Thread(target=client.signal_exec, args=("e1", "TERM"))
    sender.start()
    assert kinds(events) == ["exited"]
    sender.join(20)
    assert ("signal_exec", "e1", "TERM") in served.host.asked


def test_leaving_ends_the_command(client: Client, served: Served, web: str) -> None:
    with closing(client.follow_exec(web, FollowExec(argv=("cat",), stdin=True))) as events:
        next(events)
    deadline = time.monotonic() + 20
    while ("ended",) not in served.host.asked and time.monotonic() < deadline:
        client.list_vms()
    assert served.host.asked[-1] == ("ended",)


def test_errors_are_raised_whenever_they_come(client: Client, web: str) -> None:
    with pytest.raises(NotFoundError):
        next(client.follow_exec("nobody", FollowExec(argv=("x",))))
    events = client.follow_exec(web, FollowExec(argv=("break",)))
    assert next(events).kind == "started"
    with pytest.raises(GuestError, match="went away"):
        next(events)
    with pytest.raises(NotFoundError):
        client.write_exec("other", b"x")


def test_stopping_the_daemon_tells_who_follows(client: Client, served: Served, web: str) -> None:
    events = client.follow_exec(web, FollowExec(argv=("cat",), stdin=True))
    next(events)
    stopper = threading.Thread(target=served.stop)
    stopper.start()
    with pytest.raises(Exception, match=r"stopping|does not answer"):
        list(events)
    stopper.join()
    served.start()


def test_a_trial_is_a_task_with_output(client: Client, served: Served, web: str) -> None:
    request = TryCommand(argv=("x",), keep=True, timeout_s=5)
    task = client.try_command(web, request)
    assert served.host.asked[-1] == ("try_command", "web", request)
    assert kinds(client.task_output(task.id)) == ["started", "stderr"]
    assert TryReport.model_validate(client.finish_task(task)).exit_code == 4
    with pytest.raises(NotFoundError):
        list(client.task_output("nothing"))
