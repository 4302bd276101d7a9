"""Users and the listener, through the client, the socket and the routes."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from ramet.api.client import Client
from ramet.errors import ConflictError, NotFoundError, StateError, UsageError
from ramet.model.access import AddUser, Role, SetVsphere


def test_users_come_change_and_go(client: Client) -> None:
    made = client.add_user(AddUser(name="eve@example.org", role=Role.READ_ONLY))
    assert made.password is not None
    with pytest.raises(ConflictError):
        client.add_user(AddUser(name="eve@example.org"))
    assert client.set_role("eve@example.org", Role.OPERATOR).role is Role.OPERATOR
    assert client.set_password("eve@example.org", "correct horse").password is None
    assert client.unlock_user("eve@example.org").locked_until is None
    assert [(user.name, user.role) for user in client.list_users()] == [("eve@example.org", Role.OPERATOR)]
    client.remove_user("eve@example.org")
    with pytest.raises(NotFoundError):
        client.remove_user("eve@example.org")
    assert client.list_users() == []


def test_a_password_that_is_given_arrives(client: Client) -> None:
    assert client.add_user(AddUser(name="eve", password=SecretStr("correct horse"))).password is None
    with pytest.raises(UsageError, match="password"):
        client.set_password("eve", "short")


def test_the_listener_is_shown_and_needs_someone_who_serves(client: Client) -> None:
    assert client.vsphere().on is False
    with pytest.raises(StateError, match="serves no vSphere clients"):
        client.set_vsphere(SetVsphere(on=True))
    assert client.set_vsphere(SetVsphere(on=False)).on is False
