"""``ramet user`` and ``ramet vsphere``: what is asked, what is shown, and where passwords come from and go to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from ramet.errors import ConflictError
from ramet.model.access import AddUser, Credentials, Role, SetVsphere, UserView, VsphereView
from tests.unit.cli.cli_kit import NOW, FakeClient, run
from tests.unit.cli.test_complete import completed

EVE = UserView(name="eve", role=Role.OPERATOR, created_at=NOW - 60, password_changed_at=NOW - 60, sessions=2)
MAL = UserView(name="mal", role=Role.READ_ONLY, created_at=NOW, password_changed_at=NOW - 7200, locked_until=NOW + 600)


def listening(**change: object) -> VsphereView:
    base = {
        "on": True,
        "listen": "0.0.0.0:443",
        "origin": "command",
        "url": "https://host/",
        "ca_file": "/s/tls/ca.pem",
        "certificate_file": "/s/tls/server.pem",
        "fingerprint_sha256": "AA:BB",
        "not_after": NOW + 86400 * 397,
        "sessions": 4,
    }
    return VsphereView.model_validate({**base, **change})


def test_a_user_gets_a_random_password_that_is_shown_once() -> None:
    client = FakeClient()
    result = run(client, "user", "add", "Eve")
    assert client.asked("add_user") == [(AddUser(name="eve"),)]
    assert result.stdout == "user eve added\nname      eve\npassword  made-here\n"
    assert "shown this once" in result.stderr


def test_a_password_comes_from_a_file_or_from_stdin_but_not_from_the_command_line(tmp_path: Path) -> None:
    client = FakeClient()
    (tmp_path / "secret").write_text("correct horse\nmore\n")
    result = run(client, "user", "add", "eve", "--role", "read-only", "--password-file", str(tmp_path / "secret"))
    assert client.asked("add_user") == [
        (AddUser(name="eve", role=Role.READ_ONLY, password=SecretStr("correct horse")),)
    ]
    assert "horse" not in result.stdout + result.stderr + repr(client.calls)
    run(client, "user", "passwd", "eve", "--password-file", "-", stdin=b"another horse\n")
    assert client.asked("set_password") == [("eve", "another horse")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "eve", "--role", "administator"), "Did you mean 'administrator'?"),
        (("add", "a b"), "usable name"),
        (("add", "eve", "--password-file", "/no/such"), "cannot be read"),
        (("role", "eve", "king"), "Roles: administrator, operator, read-only."),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(words: tuple[str, ...], said: str) -> None:
    client = FakeClient()
    result = run(client, "user", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert client.calls == []


def test_a_password_that_is_too_short_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    result = run(FakeClient(), "user", "add", "eve", "--password-file", str(tmp_path / "secret"))
    assert result.exit_code == 2
    assert "password: a password has 8 to 256 characters." in result.stderr
    assert "hunter2" not in result.stderr


def test_users_are_listed() -> None:
    assert run(FakeClient(users=[EVE, MAL]), "user", "ls").stdout == (
        "NAME  ROLE       SESSIONS  PASSWORD SET      LOCKED\n"
        "eve   operator          2     1 min ago           -\n"
        "mal   read-only         0       2 h ago  for 10 min\n"
    )
    assert "No users." in run(FakeClient(), "user", "ls").stderr


def test_users_change_and_go() -> None:
    client = FakeClient(users=[EVE])
    assert run(client, "user", "role", "eve", "administrator").stdout == "user eve is administrator now\n"
    assert run(client, "user", "unlock", "eve").stdout == "user eve may log in again\n"
    assert run(client, "user", "passwd", "eve").stdout.endswith("password  made-here\n")
    assert run(client, "user", "rm", "eve").stdout == "user eve removed\n"
    assert [call[0] for call in client.calls] == ["set_role", "unlock_user", "set_password", "remove_user"]


def test_names_of_users_are_completed() -> None:
    assert completed("ramet user rm m", FakeClient(users=[EVE, MAL])) == ["mal"]


def test_the_first_on_shows_how_to_get_in() -> None:
    administrator = Credentials(name="administrator", password="made-here")
    client = FakeClient(vsphere_view=listening(administrator=administrator))
    result = run(client, "vsphere", "on", "--listen", ":8443")
    assert client.asked("set_vsphere") == [(SetVsphere(on=True, listen="0.0.0.0:8443"),)]
    assert result.stdout == (
        "vSphere clients are served at https://host/\n"
        "browser      https://host/mob\n"
        "authority    /s/tls/ca.pem\n"
        "certificate  /s/tls/server.pem, 397 d left\n"
        "fingerprint  AA:BB\n"
        "name      administrator\n"
        "password  made-here\n"
    )


def test_it_is_switched_off() -> None:
    client = FakeClient()
    assert run(client, "vsphere", "off").stdout == "vSphere clients are no longer served\n"
    assert client.asked("set_vsphere") == [(SetVsphere(on=False),)]


def test_it_is_shown() -> None:
    off = run(FakeClient(), "vsphere", "show")
    assert off.stdout == "vSphere clients are not served\n"
    shown = run(FakeClient(vsphere_view=listening()), "vsphere", "show").stdout
    assert "listens      0.0.0.0:443, by 'ramet vsphere on'\n" in shown
    assert "sessions     4\n" in shown
    closed = run(FakeClient(vsphere_view=listening(url=None, problem="Port 443 is taken.")), "vsphere", "show")
    assert closed.stdout.startswith("url          not open\n")
    assert "warning: Port 443 is taken." in closed.stderr
    data = json.loads(run(FakeClient(vsphere_view=listening()), "vsphere", "show", "--json").stdout)
    assert data["fingerprint_sha256"] == "AA:BB"


def test_an_address_that_is_none_is_refused_here() -> None:
    client = FakeClient()
    result = run(client, "vsphere", "on", "--listen", "here")
    assert result.exit_code == 2
    assert "Write it like 0.0.0.0:443" in result.stderr
    assert client.calls == []


def test_a_refusal_of_the_daemon_is_told() -> None:
    client = FakeClient(fails={"set_vsphere": ConflictError("Port 443 is taken.", hint="Choose another.")})
    result = run(client, "vsphere", "on")
    assert result.exit_code == 1
    assert "error: Port 443 is taken." in result.stderr
