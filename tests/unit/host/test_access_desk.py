"""The listener for vSphere clients: on and off, kept over a restart, and no port unless asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import ConflictError, DamagedError, UsageError
from ramet.host.access_desk import AccessDesk
from ramet.host.certificates import Certificate
from ramet.host.events import EventLog
from ramet.host.inventory import Inventory
from ramet.host.settings import Settings, load
from ramet.host.sqlite_store import SqliteStore
from ramet.model.access import AddUser, Role, SetVsphere


class FakeListener:
    def __init__(self) -> None:
        self.bound: tuple[str, int] | None = None
        self.certificate: Certificate | None = None
        self.refuses: Exception | None = None
        self.closed = 0

    async def listen(self, address: str, port: int, certificate: Certificate) -> tuple[str, int]:
        if self.refuses:
            raise self.refuses
        self.bound, self.certificate = (address, port or 4444), certificate
        return self.bound

    async def close(self) -> None:
        self.bound = None
        self.closed += 1

    def renew(self, certificate: Certificate) -> None:
        self.certificate = certificate

    def session_count(self, user: str | None = None) -> int:
        return 3 if user is None else 1


@asynccontextmanager
async def opened(path: Path, listener: FakeListener | None = None, **settings: Any) -> AsyncIterator[AccessDesk]:
    store = await SqliteStore.open(path / "inventory.db")
    try:
        async with (
            Inventory.open(store) as inventory,
            EventLog.open(path / "events.jsonl") as events,
            AccessDesk.open(inventory, events, Settings(state_dir=path, **settings)) as desk,
        ):
            if listener is None:
                yield desk
                return
            async with desk.serving(listener):
                yield desk
    finally:
        await store.aclose()


def audited(path: Path) -> list[tuple[Any, ...]]:
    entries = [json.loads(line) for line in (path / "audit.jsonl").read_text().splitlines()]
    return [(one["action"], one.get("object"), one.get("uid")) for one in entries]


async def test_no_port_is_opened_unless_somebody_asks(tmp_path: Path) -> None:
    listener = FakeListener()
    async with opened(tmp_path, listener) as desk:
        assert listener.bound is None
        assert desk.vsphere().on is False
    assert not (tmp_path / "tls").exists()


async def test_the_first_time_an_administrator_is_made_and_told_once(tmp_path: Path) -> None:
    async with opened(tmp_path, FakeListener()) as desk:
        view = await desk.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0"), 0)
        assert view.url == "https://127.0.0.1:4444/"
        assert view.administrator is not None
        assert await desk.users.check("administrator", view.administrator.password or "")
        assert desk.vsphere().administrator is None
        assert (await desk.set_vsphere(SetVsphere(on=True), 0)).administrator is None
        assert [(user.name, user.sessions) for user in desk.list_users()] == [("administrator", 1)]
    assert audited(tmp_path) == [
        ("vsphere.on", "127.0.0.1:0", 0),
        ("user.add", "administrator", 0),
        ("vsphere.on", "127.0.0.1:0", 0),
    ]
    assert str(view.administrator.password) not in (tmp_path / "audit.jsonl").read_text()


async def test_what_the_command_said_last_outlives_the_daemon_and_wins(tmp_path: Path) -> None:
    async with opened(tmp_path, FakeListener()) as desk:
        await desk.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:8443"))
    listener = FakeListener()
    async with opened(tmp_path, listener, vsphere_listen="127.0.0.1:9999") as desk:
        assert listener.bound == ("127.0.0.1", 8443)
        await desk.set_vsphere(SetVsphere(on=False))
        assert listener.bound is None
    async with opened(tmp_path, listener, vsphere_listen="127.0.0.1:9999") as desk:
        assert listener.bound is None
        await desk.set_vsphere(SetVsphere(on=True))
        assert listener.bound == ("127.0.0.1", 8443)
    assert listener.bound is None
    async with opened(tmp_path) as desk:
        assert desk.vsphere().listen == "127.0.0.1:8443"


async def test_the_setting_opens_it_at_the_start(tmp_path: Path) -> None:
    listener = FakeListener()
    async with opened(tmp_path, listener, vsphere_listen=":8443") as desk:
        assert listener.bound == ("0.0.0.0", 8443)
        assert (desk.vsphere().origin, desk.vsphere().listen) == ("setting", "0.0.0.0:8443")
        assert desk.list_users() == []


async def test_a_port_that_is_taken_is_told_to_the_command_and_changes_nothing(tmp_path: Path) -> None:
    listener = FakeListener()
    listener.refuses = ConflictError("Port 443 is taken.")
    async with opened(tmp_path, listener) as desk:
        with pytest.raises(ConflictError):
            await desk.set_vsphere(SetVsphere(on=True))
        assert desk.vsphere().on is False
        assert desk.list_users() == []


async def test_a_port_that_is_taken_at_the_start_is_a_problem_that_passes(tmp_path: Path) -> None:
    listener = FakeListener()
    listener.refuses = ConflictError("Port 8443 is taken.")
    async with opened(tmp_path, listener, vsphere_listen="127.0.0.1:8443") as desk:
        view = desk.vsphere()
        assert (view.on, view.url, view.problem) == (True, None, "Port 8443 is taken.")
        listener.refuses = None
        await desk._look()
        assert desk.vsphere().url == "https://127.0.0.1:8443/"
        assert desk.vsphere().problem is None


async def test_a_certificate_that_was_renewed_is_shown_from_then_on(tmp_path: Path) -> None:
    listener = FakeListener()
    async with opened(tmp_path, listener, vsphere_listen="127.0.0.1:8443") as desk:
        before = listener.certificate
        await desk._look()
        assert listener.certificate == before
        (tmp_path / "tls" / "server.pem").unlink()
        await desk._look()
        assert listener.certificate != before
        assert desk.vsphere().fingerprint_sha256 == (listener.certificate and listener.certificate.fingerprint)


async def test_a_damaged_authority_is_told_and_the_clients_that_trust_it_are_served(tmp_path: Path) -> None:
    listener, pem = FakeListener(), tmp_path / "tls" / "ca.pem"
    async with opened(tmp_path, listener, vsphere_listen="127.0.0.1:8443") as desk:
        whole, certificate = pem.read_bytes(), listener.certificate
        pem.write_text("nonsense")
        await desk._look()
        assert "cannot be used" in str(desk.vsphere().problem)
        assert (listener.certificate, listener.closed) == (certificate, 0)
        [warned] = [event.message for event in desk._events.recent() if event.kind == "host.warning"]
        assert "not served" not in warned
        assert "cannot be renewed" in warned
        with pytest.raises(DamagedError, match="from a copy"):
            await desk.set_vsphere(SetVsphere(on=True))
        pem.write_bytes(whole)
        await desk._look()
        assert desk.vsphere().problem is None
        assert listener.certificate == certificate


async def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, FakeListener(), tls_certificate=tmp_path / "cert.pem") as desk:
        with pytest.raises(UsageError, match="tls_key is missing"):
            await desk.set_vsphere(SetVsphere(on=True))


async def test_what_is_done_with_users_is_audited(tmp_path: Path) -> None:
    async with opened(tmp_path) as desk:
        await desk.add_user(AddUser(name="eve"), 1000)
        await desk.set_role("eve", Role.ADMINISTRATOR, 0)
        await desk.set_password("eve", "correct horse", 0)
        await desk.unlock_user("eve", 0)
        await desk.remove_user("eve", 0)
    actions = [action for action, _, _ in audited(tmp_path)]
    assert actions == [f"user.{verb}" for verb in ("add", "role", "password", "unlock", "remove")]
    assert "horse" not in (tmp_path / "audit.jsonl").read_text()


def test_the_setting_is_an_address_and_a_port(tmp_path: Path) -> None:
    assert load({"state_dir": tmp_path, "vsphere_listen": ":8443"}, {}).vsphere_listen == "0.0.0.0:8443"
    with pytest.raises(UsageError, match=r"vsphere_listen: 'here' is not an address and a port\."):
        load({"state_dir": tmp_path, "vsphere_listen": "here"}, {})
