"""Reaching into guests: exec, cp, console, screenshot, ssh, forward."""

from __future__ import annotations

import json
import os
import shlex
import socket
import threading
from pathlib import Path

import pytest

from ramet.cli import parsing
from ramet.cli.guest import ssh_argv
from ramet.errors import GuestError, StateError, UsageError
from ramet.model.requests import Exec
from ramet.model.views import ExecResult
from tests.unit.cli.cli_kit import FakeClient, run, said, vm_view


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={"web": vm_view("web")})


# -- exec


@pytest.mark.parametrize("dashes", [["--"], []])
def test_exec_hands_the_command_over_as_it_is(client: FakeClient, dashes: list[str]) -> None:
    client.exec_result = said("hello\n")
    result = run(client, "vm", "exec", "web", *dashes, "sh", "-c", "echo $X", "--json", "-q", "--help")
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    ((ref, request),) = client.asked("follow_exec")
    assert ref == "web"
    assert request.argv == ("sh", "-c", "echo $X", "--json", "-q", "--help")
    assert not request.stdin


def test_exec_options_stand_before_the_vm(client: FakeClient) -> None:
    run(client, "vm", "exec", "-i", "--timeout", "5m", "-e", "A=b", "web", "tee", "f", stdin=b"\x00data")
    ((_, request),) = client.asked("follow_exec")
    assert client.asked("write_exec") == [("e1", b"\x00data", False), ("e1", b"", True)]
    assert (request.timeout_s, request.env, request.argv) == (300, {"A": "b"}, ("tee", "f"))


def test_exec_has_the_commands_exit_code_and_streams(client: FakeClient) -> None:
    client.exec_result = said("no\n", error=True, exit_code=7)
    result = run(client, "vm", "exec", "web", "false")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "", "no\n")


def test_exec_of_a_command_that_a_signal_ended(client: FakeClient) -> None:
    client.exec_result = said("", exit_code=137, signal=9)
    assert run(client, "vm", "exec", "web", "x").exit_code == 137


def test_exec_as_json_keeps_the_exit_code(client: FakeClient) -> None:
    client.exec_result = said("h\xe9\n", exit_code=3)
    result = run(client, "vm", "exec", "--json", "web", "x")
    data = json.loads(result.stdout)
    assert (result.exit_code, data["exit_code"], data["stdout"], data["stderr"]) == (3, 3, "h\xe9\n", "")


def test_exec_says_when_output_was_cut(client: FakeClient) -> None:
    client.exec_result = said("x").changed(truncated=True)
    assert "cut" in run(client, "vm", "exec", "web", "x").stderr


def test_exec_needs_a_command(client: FakeClient) -> None:
    assert run(client, "vm", "exec", "web").exit_code == 2


def test_exec_failing_itself_is_an_error(client: FakeClient) -> None:
    client.fails["follow_exec"] = GuestError("The agent does not answer.", hint="Is it installed?")
    result = run(client, "vm", "exec", "web", "true")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: The agent does not answer.\nhint: Is it installed?\n"


def test_exec_can_wait_for_a_guest_that_is_coming_up(client: FakeClient) -> None:
    answers = iter([None, None, said("")])

    def answer(ref: str, request: Exec) -> ExecResult:
        result = next(answers)
        if result is None:
            raise GuestError("Not yet.")
        return result

    client.on_exec = answer
    client.exec_result = said("up\n")
    assert run(client, "vm", "exec", "--wait", "1m", "web", "uptime").stdout == "up\n"
    assert [request.argv for _, request in client.asked("exec_in_vm")] == [("/bin/true",)] * 3


def test_exec_does_not_wait_for_a_vm_that_is_off(client: FakeClient) -> None:
    client.fails["exec_in_vm"] = StateError("'web' is off.")
    assert run(client, "vm", "exec", "--wait", "1h", "web", "true").stderr == "error: 'web' is off.\n"


# -- cp


def test_cp_into_a_guest_keeps_mode_and_name(client: FakeClient, tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_bytes(b"#!/bin/sh\n")
    file.chmod(0o750)
    assert run(client, "vm", "cp", str(file), "web:/root/").exit_code == 0
    assert client.asked("write_file") == [("web", "/root/run.sh", b"#!/bin/sh\n", 0o750)]


def test_cp_into_a_guest_from_stdin_with_a_mode(client: FakeClient) -> None:
    assert run(client, "vm", "cp", "-", "web:/x", "--mode", "600", stdin=b"\xff\x00").exit_code == 0
    assert client.asked("write_file") == [("web", "/x", b"\xff\x00", 0o600)]


def test_cp_out_of_a_guest(client: FakeClient, tmp_path: Path) -> None:
    client.files["web:/etc/hosts"] = b"127.0.0.1 web\n"
    assert run(client, "vm", "cp", "web:/etc/hosts", str(tmp_path)).exit_code == 0
    assert (tmp_path / "hosts").read_bytes() == b"127.0.0.1 web\n"
    assert run(client, "vm", "cp", "web:/etc/hosts", str(tmp_path / "mine")).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts", "mine"]
    assert run(client, "vm", "cp", "web:/etc/hosts", "-").stdout == "127.0.0.1 web\n"


def test_cp_that_breaks_off_leaves_the_old_file(client: FakeClient, tmp_path: Path) -> None:
    def broken(ref: str, path: str) -> object:
        yield b"half"
        raise GuestError("It broke off.")

    client.read_file = broken  # type: ignore[method-assign,assignment]
    target = tmp_path / "f"
    target.write_bytes(b"old")
    assert run(client, "vm", "cp", "web:/f", str(target)).exit_code == 1
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"old")]


@pytest.mark.parametrize(
    "args",
    [
        ["a", "b"],
        ["web:/a", "web:/b"],
        ["web:relative", "b"],
        ["/", "web:/x"],
        ["/dev/null", "web:/x", "--mode", "rw"],
    ],
)
def test_cp_usage_errors(client: FakeClient, args: list[str]) -> None:
    result = run(client, "vm", "cp", *args)
    assert (result.exit_code, client.asked("write_file"), client.asked("read_file")) == (2, [], [])


def test_cp_of_a_file_that_is_not_there(client: FakeClient) -> None:
    result = run(client, "vm", "cp", "/no/such/file", "web:/x")
    assert (result.exit_code, result.stderr) == (1, "error: No such file or directory: /no/such/file.\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("web:/x", ("web", "/x")), ("./a:b", None), ("/a:b", None), ("-", None), ("plain", None), (":/x", None)],
)
def test_what_is_a_path_in_a_guest(text: str, expected: tuple[str, str] | None) -> None:
    assert parsing.guest_path(text) == expected


# -- console and screenshot


def test_console_log(client: FakeClient) -> None:
    result = run(client, "vm", "console", "web", "--log", "--bytes", "100")
    assert result.stdout == "Debian GNU/Linux 12 web ttyS0\n"
    assert client.asked("console_log") == [("web", 100)]
    assert client.streams == []


def test_screenshot(client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(client, "vm", "screenshot", "web").stdout == "web.png\n"
    assert (tmp_path / "web.png").read_bytes() == b"\x89PNG fake"
    run(client, "vm", "screenshot", "web", "other.png")
    assert (tmp_path / "other.png").exists()
    assert run(client, "vm", "screenshot", "web", "-").stdout_bytes == b"\x89PNG fake"
    assert run(client, "vm", "screenshot", "web", "-", terminal=True).exit_code == 2


# -- ssh


def test_ssh_command_line(tmp_path: Path) -> None:
    state = tmp_path / "100% mine"
    argv = ssh_argv("/usr/bin/ssh", state, vm_view("web"), "admin", "key", ["--", "-L", "1:b:2", "ls", "-l"])
    options = dict(option.split("=", 1) for option in argv if "=" in option)
    assert options["HostKeyAlias"] == "id-web"
    assert options["StrictHostKeyChecking"] == "accept-new"
    assert options["UserKnownHostsFile"] == f'"{state}/known_hosts"'.replace("%", "%%")
    proxy = shlex.split(options["ProxyCommand"].replace("%%", "%"))
    assert proxy[-5:] == ["--state", str(state), "_tunnel", "id-web", "22"]
    assert argv[argv.index("-i") :] == ["-i", "key", "-l", "admin", "web", "-L", "1:b:2", "ls", "-l"]


def test_ssh_accepts_the_command_line(tmp_path: Path) -> None:
    """The real ssh parses it: -G prints what it would do."""
    import shutil
    import subprocess

    ssh = shutil.which("ssh")
    if ssh is None:
        pytest.skip("there is no ssh")
    argv = ssh_argv(ssh, tmp_path / "100% mine", vm_view("web"), "root", None, [])
    done = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, timeout=20, check=True)
    settings = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert settings["userknownhostsfile"].replace("%%", "%").strip('"') == f"{tmp_path}/100% mine/known_hosts"
    assert settings["hostkeyalias"] == "id-web"
    assert settings["user"] == "root"
    assert "_tunnel id-web 22" in settings["proxycommand"]


def test_ssh_runs_it(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "execv", lambda path, argv: ran.append([path, *argv]))
    run(client, "--state", "/s", "ssh", "admin@web", "--", "uptime")
    assert ran[0][0] == "/usr/bin/ssh"
    assert ran[0][-4:] == ["-l", "admin", "web", "uptime"]
    assert client.asked("address_of") == [("id-web",)]


def test_ssh_without_ssh(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    result = run(client, "ssh", "web")
    assert (result.exit_code, "apt install openssh-client" in result.stderr) == (1, True)


# -- forward


@pytest.mark.parametrize(("text", "expected"), [("8080:80", (8080, 80)), ("80", (80, 80)), ("0:22", (0, 22))])
def test_ports(text: str, expected: tuple[int, int]) -> None:
    assert parsing.ports(text) == expected


@pytest.mark.parametrize("text", ["http", "1:", ":1", "70000:1", "1:0", "-1:1", "1:2:3", ""])
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parsing.ports(text)


def test_forward_a_port_that_is_taken(client: FakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run(client, "forward", "web", f"{taken.getsockname()[1]}:80")
    assert result.exit_code == 1
    assert "in use" in result.stderr


def test_forward_until_ctrl_c(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    from ramet.cli.forward import Forwarder

    def serve(self: Forwarder) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Forwarder, "serve", serve)
    result = run(client, "forward", "web", "0:80")
    assert result.exit_code == 0
    assert result.stdout.startswith("127.0.0.1:")
    assert "leads to port 80 of web" in result.stdout
    assert not set(threading.enumerate()) - before
