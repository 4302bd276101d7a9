"""Who gets in from outside: users, the audit log, and the listener for vSphere clients, on and off.

    async with AccessDesk.open(inventory, events, settings) as access:
        await access.add_user(AddUser(name="eve"), by_uid) -> Credentials
        await access.set_vsphere(SetVsphere(on=True), by_uid) -> VsphereView
        async with access.serving(listener): ...       # opens it when that is wanted, and whenever it becomes so

No port is opened unless the setting `vsphere_listen` or `ramet vsphere on` asks for it; what the command said last
stands in the inventory and wins. A listener that cannot be opened when the daemon starts is tried again: VMs matter
more than their visitors. What is done here by the native API goes to the audit log with the caller's user id.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from ramet.errors import RametError, StateError, UsageError
from ramet.host.audit import Audit
from ramet.host.bell import Bell
from ramet.host.events import EventLog
from ramet.host.inventory import Inventory
from ramet.host.settings import Settings
from ramet.host.users import LoginLimits, Users
from ramet.model.access import (
    DEFAULT_PORT,
    AddUser,
    Credentials,
    Role,
    SetVsphere,
    UserView,
    VsphereView,
    listen_text,
    parse_listen,
)

if TYPE_CHECKING:
    from ramet.host.certificates import Certificate

log = structlog.stdlib.get_logger(__name__)

SETTING = "vsphere"
TRY_AGAIN_S = 15.0
RENEW_EVERY_S = 3600.0


class Listener(Protocol):
    """What serves vSphere clients."""

    async def listen(self, address: str, port: int, certificate: Certificate, /) -> tuple[str, int]:
        """Serve there, and no longer where it did; the address and port in use. A RametError when it cannot."""

    async def close(self) -> None: ...

    def renew(self, certificate: Certificate, /) -> None:
        """Show it to whoever connects from now on."""

    def session_count(self, user: str | None = None, /) -> int: ...


class AccessDesk:
    """Made by `open`."""

    def __init__(self, inventory: Inventory, events: EventLog, settings: Settings, audit: Audit) -> None:
        limits = LoginLimits(failures=settings.lockout_failures, lock_s=settings.lockout_s)
        self.users = Users(inventory.users, limits)
        self.audit = audit
        self._inventory = inventory
        self._events = events
        self._settings = settings
        self._listener: Listener | None = None
        self._bound: tuple[str, int] | None = None
        self._certificate: Certificate | None = None
        self._problem: str | None = None
        self._changing = asyncio.Lock()
        self._bell = Bell()

    @classmethod
    @asynccontextmanager
    async def open(cls, inventory: Inventory, events: EventLog, settings: Settings) -> AsyncIterator[AccessDesk]:
        async with Audit.open(settings.state_dir / "audit.jsonl", settings.audit_quota_bytes) as audit:
            yield cls(inventory, events, settings, audit)

    # -- users -------------------------------------------------------------------------------------------------------

    def list_users(self) -> list[UserView]:
        return self.users.views(self._sessions)

    async def add_user(self, request: AddUser, by_uid: int | None = None) -> Credentials:
        made = await self.users.add(request)
        self._note("user.add", by_uid, object=made.name, role=request.role.value)
        return made

    async def remove_user(self, name: str, by_uid: int | None = None) -> None:
        await self.users.remove(name)
        self._note("user.remove", by_uid, object=name)

    async def set_password(self, name: str, password: str | None, by_uid: int | None = None) -> Credentials:
        set_ = await self.users.set_password(name, password)
        self._note("user.password", by_uid, object=set_.name)
        return set_

    async def set_role(self, name: str, role: Role, by_uid: int | None = None) -> UserView:
        view = await self.users.set_role(name, role)
        self._note("user.role", by_uid, object=view.name, role=role.value)
        return view

    async def unlock_user(self, name: str, by_uid: int | None = None) -> UserView:
        view = await self.users.unlock(name)
        self._note("user.unlock", by_uid, object=view.name)
        return view

    def _sessions(self, user: str | None = None) -> int:
        return self._listener.session_count(user) if self._listener else 0

    def _note(self, action: str, by_uid: int | None, **what: Any) -> None:
        self.audit.note(action, uid=by_uid, via="socket", result="ok", **what)

    # -- the listener ------------------------------------------------------------------------------------------------

    def vsphere(self) -> VsphereView:
        """As it stands."""
        listen, origin = self._wanted()
        made = self._certificate
        return VsphereView(
            on=listen is not None,
            listen=listen,
            origin=origin,
            url=_url(*self._bound) if self._bound else None,
            problem=self._problem,
            ca_file=str(made.ca_file) if made and made.ca_file else None,
            certificate_file=str(made.file) if made else None,
            fingerprint_sha256=made.fingerprint if made else None,
            not_after=made.not_after if made else None,
            names=made.names if made else (),
            sessions=self._sessions(),
        )

    async def set_vsphere(self, request: SetVsphere, by_uid: int | None = None) -> VsphereView:
        """On: it listens when this returns; the first time an administrator is made. Raises what keeps it from that,
        and nothing has changed then."""
        administrator = None
        async with self._changing:
            if request.on:
                listen = self._asked(request)
                await self._listen(listen)
                await self._remember(on=True, listen=listen)
                administrator = await self.users.first_administrator()
            else:
                await self._close()
                await self._remember(on=False, listen=self._wanted()[0])
        self._note("vsphere.on" if request.on else "vsphere.off", by_uid, object=self._wanted()[0])
        if administrator is not None:
            self._note("user.add", by_uid, object=administrator.name, role=Role.ADMINISTRATOR.value)
        return self.vsphere().changed(administrator=administrator)

    def _asked(self, request: SetVsphere) -> str:
        kept = self._inventory.setting(SETTING) or {}
        listen = request.listen or kept.get("listen") or self._settings.vsphere_listen
        return listen_text(*parse_listen(listen)) if listen else listen_text("0.0.0.0", DEFAULT_PORT)

    async def _remember(self, *, on: bool, listen: str | None) -> None:
        before = self._inventory.setting(SETTING) or {}
        await self._inventory.put_setting(SETTING, {"on": on, "listen": listen or before.get("listen")})

    def _wanted(self) -> tuple[str | None, str | None]:
        """Where to listen, None for nowhere; and who says so."""
        kept = self._inventory.setting(SETTING)
        if kept is not None:
            return (kept["listen"] if kept["on"] else None), "command"
        listen = self._settings.vsphere_listen
        return (listen, "setting") if listen else (None, None)

    @asynccontextmanager
    async def serving(self, listener: Listener) -> AsyncIterator[None]:
        """It opens and closes as it is wanted to, until the end of the block; then it is closed."""
        self._listener = listener
        await self._look()
        keeper = asyncio.create_task(self._keep(), name="vsphere: keeper")
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])
            async with self._changing:
                await self._close()
                self._listener = None

    async def _keep(self) -> None:
        """What should listen and does not is tried again; a certificate is renewed before it ends."""
        while True:
            wants = self._wanted()[0] is not None and self._bound is None
            await self._bell.wait(TRY_AGAIN_S if wants else RENEW_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        """Never raises: the daemon goes on without visitors."""
        async with self._changing:
            listen = self._wanted()[0]
            try:
                if listen is not None and self._bound is None:
                    await self._listen(listen)
                elif self._bound is not None:
                    await self._renew()
            except (RametError, OSError) as exc:
                self._tell(str(exc))
            except Exception as exc:
                log.exception("the listener for vSphere clients failed by a bug of ours")
                self._tell(f"{type(exc).__name__}; the daemon's log says more.")

    def _tell(self, problem: str) -> None:
        """An event for each problem, not for each try."""
        if problem != self._problem:
            served = "The certificate for vSphere clients, who are served, cannot be renewed"
            what = "vSphere clients are not served" if self._bound is None else served
            self._events.emit("host.warning", f"{what}: {problem}")
        self._problem = problem

    async def _listen(self, listen: str) -> None:
        if self._listener is None:
            raise StateError("This daemon serves no vSphere clients.", state="", operation="listen")
        address, port = parse_listen(listen)
        certificate = await self._prepare(address)
        self._bound = await self._listener.listen(address, port, certificate)
        self._certificate, self._problem = certificate, None
        self._events.emit("host.vsphere", f"vSphere clients are served at {_url(*self._bound)}.", listen=listen)
        self._bell.ring()

    async def _prepare(self, address: str) -> Certificate:
        from ramet.host.certificates import Certificates  # late: 50 ms that nobody needs who serves no clients

        certificates = Certificates(self._settings.state_dir / "tls", self._own_certificate())
        return await asyncio.to_thread(certificates.prepare, [address])

    def _own_certificate(self) -> tuple[Path, Path] | None:
        certificate, key = self._settings.tls_certificate, self._settings.tls_key
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            missing = "tls_certificate" if certificate is None else "tls_key"
            raise UsageError(f"The setting {missing} is missing: a certificate and its key go together.")
        return certificate, key

    async def _renew(self) -> None:
        if self._bound is None or self._listener is None:
            return
        certificate = await self._prepare(self._bound[0])
        self._problem = None
        if self._certificate is None or certificate.fingerprint != self._certificate.fingerprint:
            self._listener.renew(certificate)
            self._certificate = certificate
            self._events.emit("host.vsphere", "The certificate for vSphere clients was renewed.")

    async def _close(self) -> None:
        was, self._bound, self._problem = self._bound, None, None
        if self._listener is not None:
            await self._listener.close()
        if was is not None:
            self._events.emit("host.vsphere", "vSphere clients are no longer served.")


def _url(address: str, port: int) -> str:
    """With the host's name where it listens on all addresses."""
    host = address
    if address in ("0.0.0.0", "::"):
        host = socket.gethostname()
    elif ":" in address:
        host = f"[{address}]"
    return f"https://{host}{'' if port == DEFAULT_PORT else f':{port}'}/"
