"""The surface as a whole, opened when somebody asks for it and closed again: what `AccessDesk.serving` switches.

async with served(host, on_death): ...

Nothing of the API's types is imported before the first opening: they cost 0.3 s and 34 MB, which a host that serves no
vSphere clients does not pay. That is done in a thread, so that the daemon answers meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from ramet.errors import ConflictError, PrivilegeError, RametError, UsageError, from_os_error
from ramet.model.access import listen_text

if TYPE_CHECKING:
    from ramet.host.certificates import Certificate
    from ramet.host.service import Host
    from ramet.vsphere.core.world import World
    from ramet.vsphere.root import Root
    from ramet.vsphere.server import Server

log = structlog.stdlib.get_logger(__name__)

LIBRARIES = ("ramet.vsphere.opening", "ramet.vsphere.applications", "ramet.vsphere.server")


@asynccontextmanager
async def served(host: Host) -> AsyncIterator[None]:
    """Open whenever the host's desk wants it; closed at the end."""
    async with host.access.serving(Surface(host)):
        yield


class Surface:
    """The listener that the host's desk opens and closes. One at a time calls it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._stack: AsyncExitStack | None = None
        self._world: World | None = None
        self._root: Root | None = None
        self._server: Server | None = None
        self._bound: tuple[str, int] | None = None

    async def listen(self, address: str, port: int, certificate: Certificate) -> tuple[str, int]:
        """ConflictError for a port that is taken, PrivilegeError for one that only root may open."""
        if self._server is not None and self._bound == (address, port):
            self.renew(certificate)
            return self._bound
        context = await asyncio.to_thread(certificate.context)
        await asyncio.to_thread(_import_all)
        sock = self._bind(address, port)
        try:
            root = await self._open_world()
        except BaseException:
            sock.close()
            raise
        await self._start(sock, root, context, certificate)
        self._bound = (address, sock.getsockname()[1])
        self._tell_address(self._bound[1], certificate)
        return self._bound

    def _bind(self, address: str, port: int) -> Any:
        from ramet.vsphere.server import bind

        try:
            return bind(address, port)
        except OSError as exc:
            raise _explained(exc, address, port) from exc

    async def _open_world(self) -> Root:
        """Sessions, and what clients made in them, outlive a change of the port."""
        from ramet.vsphere.applications import make_root
        from ramet.vsphere.opening import open_world

        if self._root is None:
            async with AsyncExitStack() as stack:
                self._world = await stack.enter_async_context(open_world(self._host))
                self._root = make_root(self._world)
                self._stack = stack.pop_all()
        return self._root

    async def _start(self, sock: Any, root: Root, context: ssl.SSLContext, certificate: Certificate) -> None:
        from ramet.vsphere.server import Server

        before, self._server = self._server, Server(root, sock, context, self._host.settings.connections_max)
        root.ca_file = certificate.ca_file
        self._server.start()
        if before is not None:
            await before.close()

    def _tell_address(self, port: int, certificate: Certificate) -> None:
        from ramet.vsphere.applications import tell_address

        if self._world is not None:
            tell_address(self._world, port, certificate.sha1, certificate.fingerprint)

    def renew(self, certificate: Certificate) -> None:
        if self._server is not None and self._root is not None:
            certificate.load_into(self._server.context)
            self._root.ca_file = certificate.ca_file
        if self._bound is not None:
            self._tell_address(self._bound[1], certificate)

    async def close(self) -> None:
        """Clients that wait are answered or cut, then the world closes. Within some seconds."""
        server, self._server, self._bound = self._server, None, None
        if self._root is not None:
            self._root.closing = True
        if server is not None:
            await server.close()
        stack, self._stack, self._root, self._world = self._stack, None, None, None
        if stack is not None:
            await stack.aclose()

    def session_count(self, user: str | None = None) -> int:
        if self._world is None:
            return 0
        from ramet.vsphere.access.sessions import Sessions

        return self._world.part(Sessions).count(user)


def _import_all() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)


def _explained(exc: OSError, address: str, port: int) -> RametError:
    where = listen_text(address, port)
    if exc.errno == errno.EADDRINUSE:
        return ConflictError(
            f"Another program listens at {where} already.", hint="Choose another port: --listen 0.0.0.0:8443"
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return PrivilegeError(
            f"The daemon may not listen at {where}: ports below 1024 are root's.",
            hint="Choose another port: --listen 0.0.0.0:8443",
        )
    if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return UsageError(f"{address} is no address of this host.", hint="Listen at 0.0.0.0 for all of them.")
    return from_os_error(exc)
