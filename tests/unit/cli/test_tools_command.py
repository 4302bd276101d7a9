"""``ramet tools install --ssh``: a fake ssh runs the script here, with fake package managers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.cli.cli_kit import FakeClient, run, vm_view

# Its last argument is the command that the guest would run.
SSH = """#!/bin/sh
echo "$*" >>"$RECORD"
for last; do :; done
[ -z "$REFUSE" ] || { echo 'Permission denied (publickey).' >&2; exit 255; }
exec sh -c "$last"
"""
TOOLS = ("sh", "id", "cat", "env")


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={"web": vm_view("web")})


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH has these programs alone; each writes what it was called with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in TOOLS:
        (programs / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", os.fspath(programs))
    monkeypatch.setenv("RECORD", os.fspath(tmp_path / "record"))
    write(programs / "ssh", SSH)
    write(programs / "id", "#!/bin/sh\necho 0\n")
    return tmp_path / "record"


def write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def fake(record: Path, *names: str) -> None:
    for name in names:
        write(record.parent / "bin" / name, f'#!/bin/sh\necho "{name} $*" >>"$RECORD"\n')


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        (
            ("apt-get", "systemctl"),
            ["apt-get -q -y install qemu-guest-agent", "systemctl start qemu-guest-agent.service"],
        ),
        (("dnf", "systemctl"), ["dnf -y install qemu-guest-agent", "systemctl start qemu-guest-agent.service"]),
        (
            ("apk", "rc-service", "rc-update"),
            [
                "apk add qemu-guest-agent",
                "rc-update -q add qemu-guest-agent default",
                "rc-service qemu-guest-agent start",
            ],
        ),
        (("qemu-ga", "systemctl"), ["systemctl start qemu-guest-agent.service"]),
    ],
)
def test_the_guests_own_package_manager_brings_the_agent(
    client: FakeClient, record: Path, programs: tuple[str, ...], expected: list[str]
) -> None:
    fake(record, *programs)
    result = run(client, "tools", "install", "web", "--ssh", "admin", "-i", "key")
    assert result.exit_code == 0, result.stderr
    asked, *ran = record.read_text().splitlines()
    assert "-i key -l admin web" in asked
    assert ran == expected
    assert client.asked("exec_in_vm")
    assert client.asked("install_tools")


def test_others_than_root_become_root(client: FakeClient, record: Path) -> None:
    fake(record, "sudo")
    write(record.parent / "bin" / "id", "#!/bin/sh\necho 1000\n")
    assert run(client, "tools", "install", "web", "--ssh", "admin").exit_code == 0
    assert record.read_text().splitlines()[1:] == ["sudo -n sh -s"]


@pytest.mark.parametrize(("refuse", "why"), [("yes", "Permission denied"), ("", "no package manager")])
def test_a_guest_that_does_not_take_it(
    client: FakeClient, record: Path, monkeypatch: pytest.MonkeyPatch, refuse: str, why: str
) -> None:
    monkeypatch.setenv("REFUSE", refuse)
    result = run(client, "tools", "install", "web", "--ssh", "root")
    assert result.exit_code == 1
    assert why in result.stderr
    assert not client.asked("install_tools")
