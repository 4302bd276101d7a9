"""What a command changed in a guest: looked at before and after, by a script in the guest, compared here.

    before = await look(agent, token)          # remembers the files in the guest
    …
    after = await look(agent, token, after=before)
    changes(before, after)

What the guest says is bounded and checked; lines that make no sense are a `GuestError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from ramet.errors import GuestError
from ramet.guest.agent import Agent
from ramet.guest.guestfiles import guest_file
from ramet.guest.versions import compare
from ramet.model.trying import Changes, FileChange, PackageChange, PortChange, ServiceChange

_LOOK_S = 300.0
_MAX_BYTES = 8 << 20
_MAX_LINES = 100_000
_MAX_TEXT = 4096
_MAX_LISTED = 5000
_KINDS: Mapping[str, Literal["file", "folder", "link", "other"]] = {"f": "file", "d": "folder", "l": "link"}
_INSTALLED = "ii"
_END_WHEN_IDLE = {f"systemd-{name}.service" for name in ("hostnamed", "localed", "timedated")}
"""They come when they are asked something, and go by themselves some seconds later."""


@dataclass
class Observation:
    """What one look saw."""

    packages: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Version and status, by name."""
    services: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """State, what it does in it, and which invocation that is, by name."""
    ports: dict[tuple[str, str], str] = field(default_factory=dict)
    """Inode by protocol and address as in /proc/net."""
    owners: dict[str, str] = field(default_factory=dict)
    """Command by inode."""
    files: list[FileChange] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    files_limit: int | None = None


async def look(agent: Agent, token: str, *, after: bool = False) -> Observation:
    """Raises `GuestError` when the guest cannot, or says nonsense; `DeadlineError` after five minutes."""
    script = guest_file("try/observe").decode()
    mode, folder = "after" if after else "before", f"/run/ramet-try-{token}"
    outcome = await agent.exec(["/bin/sh", "-c", script, "observe", mode, folder], timeout_s=_LOOK_S)
    if not outcome.ok:
        why = outcome.stderr.decode(errors="replace").strip()[-300:] or f"exit status {outcome.exit_code}"
        raise GuestError(f"The guest could not be looked at: {why}.")
    return parse(outcome.stdout)


def parse(text: bytes) -> Observation:
    """Of what the script prints. `GuestError` for anything else."""
    lines = text.decode(errors="replace").split("\n")
    if len(text) > _MAX_BYTES or len(lines) > _MAX_LINES or lines[-2:] != ["end", ""]:
        raise GuestError("What the guest tells of itself is incomplete, or too much.")
    seen = Observation()
    for line in lines[:-2]:
        try:
            _read(seen, line)
        except (ValueError, IndexError) as exc:
            raise GuestError(f"What the guest tells of itself makes no sense: {line[:80]!r}.") from exc
    return seen


def _read(seen: Observation, line: str) -> None:
    if len(line) > 2 * _MAX_TEXT:
        raise ValueError("too long")
    what, _, rest = line.partition(" ")
    match what:
        case "package":
            name, version, *status = rest.split()
            seen.packages[name] = (version, status[0] if status else "")
        case "service":
            name, active, sub, *invocation = rest.split()
            seen.services[name] = (active, sub, invocation[0] if invocation else "")
        case "port":
            protocol, address, inode = rest.split()
            _address(protocol, address)
            seen.ports[protocol, address] = inode
        case "owner":
            inode, _, command = rest.split(" ", 2)
            seen.owners[inode] = command[:64]
        case "created" | "changed" | "deleted":
            if len(seen.files) < 3 * _MAX_LISTED:
                seen.files.append(_file(what, rest))
        case "count":
            name, number = rest.split()
            seen.counts[name] = _number(number)
        case "limit":
            seen.files_limit = _number(rest.split()[1])
        case _:
            raise ValueError(what)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _file(change: Literal["created", "changed", "deleted"], rest: str) -> FileChange:
    kind, size, path = rest.split(" ", 2)
    size_bytes = _number(size) if kind == "f" else None
    return FileChange(path=path[:_MAX_TEXT], change=change, kind=_KINDS.get(kind, "other"), size_bytes=size_bytes)


def _address(protocol: str, text: str) -> tuple[Literal["tcp", "udp"], str, int]:
    """'tcp', '0100007F:0016' to ('tcp', '127.0.0.1', 22): the words of an address are in the guest's byte order."""
    if protocol not in ("tcp", "tcp6", "udp", "udp6") or not re.fullmatch(
        r"[0-9A-F]{8}([0-9A-F]{24})?:[0-9A-F]{4}", text
    ):
        raise ValueError(text)
    address, _, port = text.partition(":")
    packed = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    shown = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
    return "tcp" if protocol.startswith("tcp") else "udp", str(shown), int(port, 16)


# -- comparing -----------------------------------------------------------------------------------------------------


def changes(before: Observation, after: Observation) -> Changes:
    """What is different now. The files are those of `after`, which the guest itself compared."""
    counts = {kind: sum(file.change == kind for file in after.files) for kind in ("created", "changed", "deleted")}
    counts.update((kind, max(counts[kind], told)) for kind, told in after.counts.items() if kind in counts)
    limits = [limit for limit in (before.files_limit, after.files_limit) if limit is not None]
    return Changes(
        files=tuple(sorted(after.files, key=lambda file: file.path))[:_MAX_LISTED],
        files_created=counts["created"],
        files_changed=counts["changed"],
        files_deleted=counts["deleted"],
        files_limit=min(limits, default=None),
        packages=tuple(_packages(before.packages, after.packages))[:_MAX_LISTED],
        services=tuple(_services(before, after))[:_MAX_LISTED],
        ports=tuple(_ports(before, after))[:_MAX_LISTED],
    )


def _packages(before: Mapping[str, tuple[str, str]], after: Mapping[str, tuple[str, str]]) -> Iterable[PackageChange]:
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old != new and (_is_there(old) or _is_there(new)):
            yield PackageChange(name=name, change=_package_change(old, new), before=_shown(old), after=_shown(new))


def _is_there(package: tuple[str, str] | None) -> bool:
    """Not 'rc', 'un': gone but for its configuration, or never there."""
    return package is not None and package[1][1:2] not in ("n", "c")


def _package_change(
    old: tuple[str, str] | None, new: tuple[str, str] | None
) -> Literal["installed", "upgraded", "downgraded", "removed", "changed"]:
    if not _is_there(new) or new is None:
        return "removed"
    if new[1] != _INSTALLED:
        return "changed"
    if not _is_there(old) or old is None:
        return "installed"
    order = compare(old[0], new[0])
    return "changed" if order == 0 else "upgraded" if order < 0 else "downgraded"


def _shown(package: tuple[str, str] | None) -> str | None:
    if package is None or not _is_there(package):
        return None
    return package[0] if package[1] == _INSTALLED else f"{package[0]} ({package[1]})"


def _services(before: Observation, after: Observation) -> Iterable[ServiceChange]:
    for name in sorted({*before.services, *after.services} - _END_WHEN_IDLE):
        old = before.services.get(name, ("inactive", "", ""))
        new = after.services.get(name, ("inactive", "gone", ""))
        change = _service_change(old, new)
        if change is not None:
            yield ServiceChange(name=name, change=change, state=f"{new[0]} ({new[1]})" if new[1] else new[0])


def _service_change(
    old: tuple[str, str, str], new: tuple[str, str, str]
) -> Literal["started", "stopped", "failed", "restarted"] | None:
    if new[0] == "failed":
        return "failed" if old[0] != "failed" or old[2] != new[2] else None
    if new[0] in ("active", "reloading", "activating"):
        if old[0] not in ("active", "reloading", "activating"):
            return "started"
        return "restarted" if old[2] != new[2] else None
    return "stopped" if old[0] in ("active", "reloading") else None


def _ports(before: Observation, after: Observation) -> Iterable[PortChange]:
    opened = [(key, "opened") for key in after.ports if key not in before.ports]
    closed = [(key, "closed") for key in before.ports if key not in after.ports]
    found = []
    for (protocol, raw), change in (*opened, *closed):
        plain, address, port = _address(protocol, raw)
        process = after.owners.get(after.ports[protocol, raw]) if change == "opened" else None
        found.append(
            PortChange.model_validate(
                {"protocol": plain, "address": address, "port": port, "change": change, "process": process}
            )
        )
    return sorted(found, key=lambda port: (port.protocol, port.port, port.address))
