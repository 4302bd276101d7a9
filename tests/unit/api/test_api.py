import base64
import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ramet.api import Client
from ramet.errors import (
    ConflictError,
    DeadlineError,
    InternalError,
    NotFoundError,
    PeerError,
    StateError,
    TaskCancelledError,
    UsageError,
)
from ramet.model.host import EgressRule, Task, TaskState
from ramet.model.pool import SetPool
from ramet.model.requests import (
    AddDisk,
    BuildImage,
    ChangeNetwork,
    ChangeVm,
    CloneVm,
    CopyVm,
    CreateNetwork,
    CreateVm,
    Exec,
    ExportDisk,
    GrowDisk,
    ImportImage,
    NicChange,
    NicRequest,
    RegisterVm,
    StopVm,
)
from ramet.model.sharing import PageSharing
from tests.unit.api.api_kit import PNG, Served


@pytest.fixture
def web(client: Client) -> str:
    client.wait_task(client.create_vm(CreateVm(name="web")))
    return "web"


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(served.settings.api_socket))
    with httpx.Client(transport=transport, base_url="http://x", timeout=30) as http:
        yield http


def test_creating_answers_a_task_in_the_callers_name(client: Client, http: httpx.Client) -> None:
    answer = http.post("/v1/vms", json={"name": "web"})
    assert answer.status_code == 202
    task = client.wait_task(answer.json()["id"])
    assert (task.state, task.kind, task.result) == (TaskState.SUCCESS, "vm.create", {"name": "web"})
    assert task.by_uid == os.geteuid()
    assert [vm.name for vm in client.list_vms()] == ["web"]
    assert client.show_vm("web").machine.name == "web"


def test_a_vm_is_unregistered_and_registered_again(client: Client, web: str) -> None:
    vm_id = client.show_vm(web).id
    client.unregister_vm(web)
    assert (client.list_vms(), [vm.id for vm in client.list_vms(unregistered=True)]) == ([], [vm_id])
    assert client.register_vm(RegisterVm(ref=vm_id, name="www")).name == "www"
    assert ([vm.name for vm in client.list_vms()], client.list_vms(unregistered=True)) == (["www"], [])


def test_every_operation_on_a_vm_arrives_as_it_was_asked(client: Client, served: Served, web: str) -> None:
    client.start_vm(web)
    client.stop_vm(web)
    client.stop_vm(web, StopVm(hard=True, timeout_s=5))
    client.restart_vm(web, hard=True)
    client.copy_vm(web, CopyVm(name="copy", linked=False))
    client.suspend_vm(web)
    client.resume_vm(web)
    client.freeze_vm(web)
    client.thaw_vm(web)
    client.change_vm(web, ChangeVm(name="www"))
    client.remove_vm(web, force=True)
    client.install_tools(web)
    assert served.host.asked == [
        ("start", web),
        ("stop", web, StopVm()),
        ("stop", web, StopVm(hard=True, timeout_s=5)),
        ("restart", web, True),
        ("copy", web, CopyVm(name="copy", linked=False)),
        ("suspend", web),
        ("resume", web),
        ("freeze", web),
        ("thaw", web),
        ("change", web, ChangeVm(name="www")),
        ("remove", web, True),
        ("install_tools", web),
    ]


def test_every_operation_on_devices_arrives_as_it_was_asked(client: Client, served: Served, web: str) -> None:
    client.add_nic(web, NicRequest(network=None))
    client.change_nic(web, NicChange(id="net1", network=""))
    client.change_nic(web, NicChange(id="net1", connected=False))
    client.remove_nic(web, "net1")
    client.add_disk(web, AddDisk(size_mib=10))
    client.grow_disk(web, "disk1", GrowDisk(size_mib=20))
    client.remove_disk(web, "disk1")
    client.export_disk(web, "disk0", ExportDisk(path="/x"))
    assert served.host.asked == [
        ("add_nic", web, NicRequest(network=None)),
        ("change_nic", web, NicChange(id="net1", network="")),
        ("change_nic", web, NicChange(id="net1", connected=False)),
        ("remove_nic", web, "net1"),
        ("add_disk", web, AddDisk(size_mib=10)),
        ("grow_disk", web, "disk1", GrowDisk(size_mib=20)),
        ("remove_disk", web, "disk1"),
        ("export_disk", web, "disk0", ExportDisk(path="/x")),
    ]


def test_clones_and_their_forecast(client: Client, http: httpx.Client, web: str) -> None:
    results = client.clone_results(client.wait_task(client.clone_vm(web, CloneVm(names=("a", "b")))))
    assert [(result.name, result.timings_ms.stun) for result in results] == [("a", 5.0), ("b", 5.0)]
    assert client.forecast_clone(web, CloneVm(names=("a",))).forecast_stun_ms == 12.5
    assert http.post("/v1/vms/web/clone", json={"names": ["a"], "dry_run": True}).status_code == 200
    assert http.post("/v1/vms/web/clone", json={"names": ["a"]}).status_code == 202


def test_a_clone_is_asked_again_or_taken_as_it_is(client: Client, served: Served, web: str) -> None:
    for bare in (False, True):
        assert client.wait_task(client.identify_vm(web, bare)).result == {"name": "web"}
        assert served.host.asked[-1] == ("identify_vm", "web", bare)


def test_pools(client: Client, served: Served, web: str) -> None:
    assert client.set_pool(web, SetPool(size=4, memory_budget_mib=256)).size == 4
    assert served.host.asked[-1] == ("set_pool", "web", SetPool(size=4, memory_budget_mib=256))
    assert [(view.vm, view.ready, view.taken) for view in client.list_pools()] == [("web", 2, 5)]
    client.remove_pool(web)
    for ask in (lambda: client.remove_pool("nope"), lambda: client.set_pool("nope", SetPool(size=1))):
        with pytest.raises(NotFoundError):
            ask()


def test_a_pool_has_bounds(http: httpx.Client, web: str) -> None:
    for body in ({"size": -1}, {"size": 257}, {"size": 1, "memory_budget_mib": 0}, {}):
        assert http.put("/v1/vms/web/pool", json=body).status_code == 422


def test_images_networks_and_the_host(client: Client, served: Served) -> None:
    client.build_image(BuildImage(recipe="micro"))
    client.import_image(ImportImage(path="/x"))
    assert [image.name for image in client.list_images()] == ["micro"]
    client.remove_image("micro")
    assert client.list_images() == []
    created = client.create_network(CreateNetwork(name="lab", cidr="10.1.0.0/24"))
    assert client.list_networks() == [created]
    assert client.show_network("lab") == created
    rule = EgressRule(cidr="10.0.0.0/8", protocol="tcp", ports=(443, 443))
    changed = client.change_network("lab", ChangeNetwork(nat=True, egress_default="deny", add_rules=(rule,)))
    assert changed == created.changed(nat=True, egress_default="deny", egress=(rule,)) == client.show_network("lab")
    client.remove_network("lab")
    with pytest.raises(NotFoundError):
        client.remove_network("lab")
    assert client.host_view().state_dir == str(served.settings.state_dir)
    assert client.doctor()[0].found == "7.2"
    assert client.tree()[0].children[0].name == "c"


def test_guests_are_reached(client: Client, served: Served, web: str) -> None:
    result = client.exec_in_vm(web, Exec(argv=("echo", "hi")))
    assert (result.exit_code, base64.b64decode(result.stdout_base64)) == (3, b"hi")
    client.wait_agent(web, 7.5)
    assert served.host.asked[-1] == ("wait_agent", web, 7.5)
    assert client.screenshot(web) == PNG
    assert client.console_log(web, 9) == b"\xff\x00login: "
    with pytest.raises(StateError, match="No address of 'web'"):
        client.address_of(web)


def test_files_go_in_and_come_out_whole(client: Client, served: Served, web: str) -> None:
    data = os.urandom(3 << 20)
    client.write_file(web, "/a b/ü", data, mode=0o750)
    assert served.host.asked[-1] == ("write_file", web, "/a b/ü", 0o750)
    assert b"".join(client.read_file(web, "/a b/ü")) == data
    client.write_file(web, "/chunks", iter([b"one", b"", b"two"]))
    assert b"".join(client.read_file(web, "/chunks")) == b"onetwo"
    client.write_file(web, "/empty", b"")
    assert b"".join(client.read_file(web, "/empty")) == b""


def test_an_open_file_is_streamed(client: Client, served: Served, web: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 600_000)
    with (tmp_path / "f").open("rb") as file:
        client.write_file(web, "/f", file)
    assert served.host.files["/f"] == b"x" * 600_000


def test_a_file_that_is_not_there_is_an_error_and_one_that_breaks_off_too(
    client: Client, served: Served, web: str
) -> None:
    with pytest.raises(NotFoundError, match="no file '/none'"):
        list(client.read_file(web, "/none"))
    served.host.files["/breaks"] = b"x" * 5000
    with pytest.raises(PeerError):
        list(client.read_file(web, "/breaks"))


def test_an_upload_that_is_refused_at_once_says_why(client: Client, web: str) -> None:
    with pytest.raises(NotFoundError, match="no VM 'wbe'"):
        client.write_file("wbe", "/x", iter([b"x" * 65536] * 200))
    assert client.list_vms()


@pytest.mark.parametrize("mode", ["rw", "99", "07777777", ""])
def test_a_wrong_mode_is_refused(http: httpx.Client, web: str, mode: str) -> None:
    answer = http.put("/v1/vms/web/file", params={"path": "/x", "mode": mode}, content=b"x")
    assert answer.status_code == 422
    assert answer.json()["error"]["hint"] == "Write it like 0644."


# Errors


def test_errors_come_back_as_they_were_raised(client: Client, http: httpx.Client, web: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.show_vm("wbe")
    assert (caught.value.message, caught.value.hint) == ("There is no VM 'wbe'.", "Did you mean 'web'?")
    assert caught.value.fields == {"ref": "wbe"}
    with pytest.raises(ConflictError):
        client.create_vm(CreateVm(name="web"))
    assert http.get("/v1/vms/wbe").status_code == 404
    assert http.post("/v1/vms", json={"name": "web"}).status_code == 409


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"name": "-"}', "name: '-' is not a usable name"),
        (b'{"name": "a", "memory_mib": 1}', "memory_mib: Input should be greater than or equal to 32."),
        (b'{"name": "a", "memmory": 1}', "memmory: Extra inputs are not permitted."),
        (b"{", "The request's body is not valid JSON."),
        (b"", "the request: Field required."),
    ],
)
def test_a_wrong_request_is_one_sentence(http: httpx.Client, body: bytes, message: str) -> None:
    answer = http.post("/v1/vms", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "usage"
    assert answer.json()["error"]["message"].startswith(message)


def test_a_bug_shows_nothing_of_its_inside(client: Client, http: httpx.Client) -> None:
    answer = http.post("/v1/vms", json={"name": "bug"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    with pytest.raises(InternalError):
        client.create_vm(CreateVm(name="bug"))


def test_unknown_places_and_methods_are_errors_of_the_same_shape(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["code"] == "not-found"
    answer = http.put("/v1/vms")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "usage")


def test_bodies_are_bounded_whether_or_not_they_say_their_length(http: httpx.Client, web: str) -> None:
    big = json.dumps({"name": "a", "user_data": "x" * (2 << 20)}).encode()
    for content in (big, iter([big[:100], big[100:]])):
        answer = http.post("/v1/vms", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == "The request's body is larger than 1 MiB."
    assert http.get("/v1/vms").status_code == 200


def test_a_name_with_a_slash_stays_one_name(client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.show_vm("a/b")
    with pytest.raises(NotFoundError):
        client.start_vm("../networks")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_daemon_is_one_clear_error(state_dir: Path) -> None:
    with Client(state_dir / "run" / "api.sock") as client, pytest.raises(PeerError, match="does not answer"):
        client.list_vms()
    with pytest.raises(PeerError, match="No daemon serves"):
        Client.connect(state_dir, start_daemon=False)


def test_a_daemon_that_does_not_answer_in_time(state_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(state_dir / "run" / "api.sock"))
        mute.listen()
        with Client(state_dir / "run" / "api.sock", timeout_s=0.05) as client, pytest.raises(DeadlineError):
            client.list_vms()


# Tasks and events


def test_waiting_for_a_task_tells_all_news(client: Client, served: Served) -> None:
    news: list[str] = []

    def told(task: object) -> None:
        news.append(getattr(task, "doing", ""))
        if news[-1] == "at 20":
            served.call(served.host.go.set)

    task = client.wait_task(client.selftest(), on_update=told)
    assert task.result[0]["found"] == "same"
    assert news[-1] == ""
    assert [task.id for task in client.list_tasks()] == [task.id]


def test_a_wait_is_bounded(client: Client) -> None:
    task = client.selftest()
    assert client.get_task(task.id, wait_s=0.01).state is TaskState.RUNNING
    with pytest.raises(DeadlineError):
        client.wait_task(task, timeout_s=0.05)
    client.cancel_task(task.id)
    with pytest.raises(TaskCancelledError):
        client.finish_task(task)


def test_the_result_of_a_task_that_is_finished(client: Client, served: Served) -> None:
    served.call(served.host.go.set)
    assert client.finish_task(client.selftest())[0]["name"] == "clone"
    with pytest.raises(NotFoundError):
        client.wait_task("nope")
    assert client.cancel_task(client.list_tasks()[0].id).state is TaskState.SUCCESS


def test_events_are_listed_and_followed(client: Client, served: Served) -> None:
    for n in range(3):
        served.call(served.host.events.emit, "x", f"event {n}")
    events = client.events(since=0, follow=True)
    assert [next(events).seq for _ in range(4)] == [1, 2, 3, 4]
    served.call(served.host.events.emit, "y", "zwölf\nlines")
    assert next(events).message == "zwölf\nlines"
    events.close()  # type: ignore[attr-defined]
    assert [event.seq for event in client.events(since=3)] == [4, 5]


def test_stopping_ends_those_who_wait(client: Client, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.api.client._RECONNECT_S", 0.0)
    task = client.selftest()
    waits, follows = threading.Event(), threading.Event()
    wait = served.host.tasks.wait

    async def noticed(task_id: str, timeout_s: float, since_version: int | None = None) -> Task:
        waits.set()
        return await wait(task_id, timeout_s, since_version)

    monkeypatch.setattr(served.host.tasks, "wait", noticed)

    def follower() -> str:
        with Client(served.settings.api_socket) as own:
            events = own.events(since=0, follow=True)
            next(events)
            follows.set()
            with pytest.raises(PeerError, match="has gone away"):
                next(events)
        return "ended"

    def waiter() -> TaskState:
        with Client(served.settings.api_socket) as own:
            return own.get_task(task.id, wait_s=60).state

    with ThreadPoolExecutor() as threads:
        ends: list[Future[Any]] = [threads.submit(follower), threads.submit(waiter)]
        assert waits.wait(30)
        assert follows.wait(30)
        served.stop()
        assert [end.result(30) for end in ends] == ["ended", TaskState.RUNNING]


# Streams


def test_a_stream_is_a_descriptor_of_ones_own(client: Client, web: str) -> None:
    for kind, port in (("tcp", 22), ("console", None), ("vnc", None)):
        with client.open_stream(kind, web, port) as stream:  # type: ignore[arg-type]
            assert stream.getblocking()
            assert stream.makefile().read() == f"{kind} web {port}\n"


def test_a_stream_that_cannot_be_is_refused_with_the_reason(client: Client, web: str) -> None:
    with pytest.raises(NotFoundError, match="no VM 'wbe'"):
        client.open_stream("console", "wbe")
    for kind, port in (("tcp", None), ("console", 5), ("tcp", 70000), ("gopher", None)):
        with pytest.raises(UsageError):
            client.open_stream(kind, web, port)  # type: ignore[arg-type]


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b"[]\n", b"x" * 5000, b'{"kind": "console"}\n', b""])
def test_nonsense_on_the_streams_socket_gets_an_answer(served: Served, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(served.settings.streams_socket))
        sock.sendall(line)
        sock.shutdown(socket.SHUT_WR)
        assert json.loads(sock.makefile().readline())["error"]["code"] == "usage"


# The description


def test_the_served_description_is_the_written_one(http: httpx.Client) -> None:
    from ramet.api.app import openapi

    assert http.get("/v1/openapi.json").json() == json.loads(json.dumps(openapi()))


def test_page_sharing_is_shown_and_switched(client: Client) -> None:
    assert client.page_sharing().saved_bytes == 4096
    task = client.set_page_sharing(PageSharing.HOST)
    assert client.finish_task(task) == {"mode": "host"}
    assert client.page_sharing().mode is PageSharing.HOST


def test_page_sharing_has_two_modes(http: httpx.Client) -> None:
    answer = http.put("/v1/host/page-sharing", json={"mode": "lineage"})
    assert answer.status_code == 422
    assert "mode" in answer.json()["error"]["message"]
