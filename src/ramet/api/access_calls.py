"""The client's part about who gets in from outside: users, and the listener for vSphere clients."""

from __future__ import annotations

from ramet.api.calls import Calls, quote
from ramet.model.access import AddUser, Credentials, Role, SetRole, SetVsphere, UserView, VsphereView


class AccessCalls(Calls):
    """A part of `ramet.api.client.Client`."""

    def list_users(self) -> list[UserView]:
        return self._list(UserView, "/v1/users")

    def add_user(self, request: AddUser) -> Credentials:
        """With a password if one was made, which is told here and never again."""
        given = request.password.get_secret_value() if request.password else None
        return self._call(Credentials, "POST", "/v1/users", {**request.model_dump(mode="json"), "password": given})

    def remove_user(self, name: str) -> None:
        self._wire.json("DELETE", _user(name))

    def set_password(self, name: str, password: str | None = None) -> Credentials:
        """A random one is made for None."""
        return self._call(Credentials, "PUT", _user(name, "password"), {"password": password})

    def set_role(self, name: str, role: Role) -> UserView:
        return self._call(UserView, "PUT", _user(name, "role"), SetRole(role=role))

    def unlock_user(self, name: str) -> UserView:
        return self._call(UserView, "POST", _user(name, "unlock"))

    def vsphere(self) -> VsphereView:
        """The listener for vSphere clients."""
        return self._call(VsphereView, "GET", "/v1/vsphere")

    def set_vsphere(self, request: SetVsphere) -> VsphereView:
        """The first time with the administrator that was made."""
        return self._call(VsphereView, "PUT", "/v1/vsphere", request)


def _user(name: str, *more: str) -> str:
    return "/".join(("/v1/users", quote(name), *more))
