"""The way out of the namespace for port groups with NAT: pasta, without a rule or an interface on the host.

pasta makes an interface, `uplink`, in the namespace and repeats what comes in there with ordinary sockets of the
host. So guests reach what a program on the host reaches, and nothing on the host learns to forward packets.
"""

from __future__ import annotations

from pathlib import Path

from ramet.errors import ToolError
from ramet.network import privilege
from ramet.network.addresses import UPLINK_ADDRESS, UPLINK_GATEWAY, UPLINK_PREFIX
from ramet.network.firewall import UPLINK
from ramet.network.links import Links
from ramet.network.namespace import Namespace, NamespaceThread
from ramet.network.services import Service, ServiceSpec, Spawn, end_all, find_program

HINT = f"pasta runs as nobody. {privilege.OPEN_TUN}"
APPARMOR = Path("/sys/module/apparmor/parameters/enabled")


def pasta_argv(pasta: str, setpriv: str, namespace: Path, *, apparmor: bool) -> tuple[str, ...]:
    """The command line; for the 2023_03_09 version of Debian 12 and later ones.

    pasta becomes `nobody` before it enters the namespace, which it then may not do: the securebit lets it keep
    its capabilities across that, until it drops all but two of them by itself and seals itself with seccomp.
    Its AppArmor profile lets it open no namespace in /run/netns, only a user's own: it runs without the profile.

    No ports are forwarded inwards (its default would show the namespace's DNS server on the host), and
    --no-map-gw keeps the host's loopback services out of the guests' reach.
    """
    return (
        *(setpriv, "--securebits", "+no_setuid_fixup"),
        *(("--apparmor-profile", "unconfined") if apparmor else ()),
        pasta,
        *("--foreground", "--quiet", "--ipv4-only", "--netns", str(namespace)),
        *("--config-net", "--ns-ifname", UPLINK, "--mtu", "1500"),
        *("--address", str(UPLINK_ADDRESS), "--netmask", str(UPLINK_PREFIX), "--gateway", str(UPLINK_GATEWAY)),
        *("--no-map-gw", "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"),
        *("--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra", "--dns", "none"),
    )


def apparmor_is_on() -> bool:
    try:
        return APPARMOR.read_text().startswith("Y")
    except OSError:
        return False


def check_available() -> tuple[str, str]:
    """Paths of pasta and setpriv. Raises UnsupportedError with the remedy."""
    return find_program("pasta", "passt"), find_program("setpriv", "util-linux")


class Nat:
    """The uplink of the namespace: there is one while any port group has NAT.

    `spawn` starts a program where the outside is: the host, or in tests a namespace that plays it.
    """

    def __init__(self, namespace: Namespace, thread: NamespaceThread, spawn: Spawn, log: Path) -> None:
        self._namespace = namespace
        self._thread = thread
        self._spawn = spawn
        self._log = log
        self._service: Service | None = None

    @property
    def problem(self) -> str | None:
        if self._service is None or self._service.problem is None or privilege.is_open_to_all():
            return self._service.problem if self._service else None
        return f"{self._service.problem}. {HINT}"

    async def ensure(self, *, insist: bool = False) -> None:
        """Have an uplink; idempotent.

        Raises UnsupportedError without pasta; ToolError when it does not start (the host has no route to the outside,
        for one), or tries on in the background (`insist`).
        """
        if self._service is not None:
            return
        pasta, setpriv = check_available()
        path = str(self._namespace.path)
        spec = ServiceSpec(
            name="pasta",
            program="pasta",
            argv=pasta_argv(pasta, setpriv, self._namespace.path, apparmor=apparmor_is_on()),
            mark=path,
            exact=path,
            log=self._log,
        )
        service = Service(spec, self._spawn, self._is_ready)
        try:
            await service.start(insist=insist)
        except ToolError as exc:
            if privilege.is_open_to_all():
                raise
            raise ToolError(exc.message, hint=HINT) from exc
        self._service = service

    async def stop(self) -> None:
        """No uplink any more; idempotent, and also for one that an earlier daemon started."""
        if self._service is not None:
            service, self._service = self._service, None
            await service.stop()
        await end_all("pasta", str(self._namespace.path))

    async def release(self) -> None:
        """Let the uplink go on without us."""
        if self._service is not None:
            service, self._service = self._service, None
            await service.release()

    async def _is_ready(self) -> bool:
        return await self._thread.netlink(_uplink_is_up)


def _uplink_is_up(links: Links) -> bool:
    return links.is_up(UPLINK) and bool(links.addresses(UPLINK))
