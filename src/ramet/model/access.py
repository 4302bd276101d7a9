"""Who may come in from outside: users and their roles, the listener for vSphere clients, its certificate."""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, SecretStr

from ramet.errors import UsageError
from ramet.model.base import Model

HOME_DOMAIN = "vsphere.local"
"""The domain that may be left off: administrator@vsphere.local is the user administrator."""
SHORTEST_PASSWORD = 8
LONGEST_PASSWORD = 256
DEFAULT_PORT = 443

_USER = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?(?:@[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?)?")


def user_name(text: str) -> str:
    r"""A user's name as it is kept: 'VSPHERE.LOCAL\Administrator' -> 'administrator'. ValueError with the rule."""
    domain, slash, name = text.strip().lower().partition("\\")
    name = f"{name}@{domain}" if slash else domain
    name = name.removesuffix(f"@{HOME_DOMAIN}")
    if not _USER.fullmatch(name):
        raise ValueError(
            f"{text[:80]!r} is not a usable name: letters, digits, '.', '_' and '-' (not first or last), at most 63, "
            "with @DOMAIN or without"
        )
    return name


UserName = Annotated[str, AfterValidator(user_name)]


class Role(StrEnum):
    """What a user may do."""

    ADMINISTRATOR = "administrator"  # everything
    OPERATOR = "operator"  # everything with VMs; nothing about the host and its users
    READ_ONLY = "read-only"  # look


class User(Model):
    """A user as the inventory has it."""

    name: UserName
    role: Role
    password_hash: str
    """Argon2id, with its salt and cost, in the PHC string format."""
    created_at: float
    changed_at: float
    """When the password was last set, Unix time."""
    locked_until: float = 0.0
    """Unix time."""
    role_since: float = 0.0
    """When the role was last set, Unix time; 0 for the first one."""


class UserView(Model):
    """A user as callers see it."""

    name: str
    role: Role
    created_at: float
    password_changed_at: float
    locked_until: float | None = None
    """Unix time until which no login is let in; None when it is."""
    sessions: int = 0
    """That are open now."""


def check_password(text: str) -> None:
    """ValueError with the rule that a password breaks."""
    if not SHORTEST_PASSWORD <= len(text) <= LONGEST_PASSWORD:
        raise ValueError(f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    if any("\ud800" <= char <= "\udfff" for char in text):  # JSON can say so; no keyboard and no other client can
        raise ValueError("a password has whole characters, not halves of them (surrogates)")


def _password(value: SecretStr) -> SecretStr:
    check_password(value.get_secret_value())
    return value


Password = Annotated[SecretStr, AfterValidator(_password)]


class AddUser(Model):
    name: UserName
    role: Role = Role.OPERATOR
    password: Password | None = None
    """None: a random one is made, and told once."""


class SetPassword(Model):
    password: Password | None = None
    """None: a random one is made, and told once."""


class SetRole(Model):
    role: Role


class Credentials(Model):
    """A name and, when it was made here just now, the password: it is told this once and kept nowhere."""

    name: str
    password: str | None = None


class SetVsphere(Model):
    """Open the listener for vSphere clients, or close it."""

    on: bool
    listen: str | None = None
    """ADDRESS:PORT; None: where it was last, else port 443 of every address."""


class VsphereView(Model):
    """The listener and how clients reach and trust it."""

    on: bool
    listen: str | None = None
    """ADDRESS:PORT that is asked for."""
    origin: str | None = None
    """Who asked: 'command', or 'setting'."""
    url: str | None = None
    """None while it is not open."""
    problem: str | None = None
    """Why it is not open although it should be."""
    ca_file: str | None = None
    """The authority that made the certificate; None for the user's own."""
    certificate_file: str | None = None
    fingerprint_sha256: str | None = None
    """Of the server's certificate: hex pairs with colons."""
    not_after: float | None = None
    """Unix time at which the certificate ends."""
    names: tuple[str, ...] = ()
    """Host names and addresses that the certificate is for."""
    sessions: int = 0
    administrator: Credentials | None = None
    """Made just now, because there was no user."""


def parse_listen(text: str) -> tuple[str, int]:
    """'0.0.0.0:443', '[::]:8443', ':8443' or a bare '8443' -> address and port. UsageError."""
    host, colon, port = text.strip().rpartition(":")
    host = host.strip("[]") if colon else ""
    try:
        address = str(ipaddress.ip_address(host or "0.0.0.0"))
        number = int(port)
    except ValueError as exc:
        raise UsageError(
            f"{text!r} is not an address and a port.", hint="Write it like 0.0.0.0:443, 127.0.0.1:8443 or [::]:443."
        ) from exc
    if not 0 <= number <= 65535:
        raise UsageError(f"{number} is not a port.", hint="A port is between 1 and 65535.")
    return address, number


def listen_text(address: str, port: int) -> str:
    """The inverse of `parse_listen`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
