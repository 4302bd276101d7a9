"""Small languages of option values: NICs, disks, keys, ports, guest paths, to the model's requests."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ramet.errors import UsageError
from ramet.model.base import Model, explain
from ramet.model.identity import Part
from ramet.model.machine import NicModel
from ramet.model.requests import DiskRequest, NicChange, NicRequest
from ramet.model.units import parse_size_mib

M = TypeVar("M", bound=Model)


def keys(items: Iterable[str] | None, option: str = "--set") -> dict[str, str]:
    """['guestinfo.a=b', …] to a dict; the value may hold '=' and be empty, and '@FILE' reads it from a file."""
    pairs: dict[str, str] = {}
    for item in items or ():
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise UsageError(f"{option} {item!r} is not KEY=VALUE.", hint=f"Write it like {option} guestinfo.role=web.")
        pairs[key] = read_text(value[1:]) if value.startswith("@") else value
    return pairs


def read_text(path: str) -> str:
    """A text file's contents, OSError and bad UTF-8 as usage errors."""
    try:
        return Path(path).expanduser().read_text()
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not text.") from exc


def ssh_key(value: str) -> str:
    """A public key from a file, or written out."""
    if value.startswith(("ssh-", "ecdsa-", "sk-")):
        return value.strip()
    text = read_text(value).strip()
    if "PRIVATE KEY" in text:
        raise UsageError(f"{value} is a private key.", hint=f"Give the public one: {value}.pub.")
    return text


def nic(text: str) -> NicRequest:
    """'default', 'user', 'none' (no port group), 'lab,model=e1000e,mac=52:54:00:00:00:01,disconnected'."""
    network, *rest = text.split(",")
    fields: dict[str, Any] = {"network": None if network in ("none", "") else network}
    for part in rest:
        key, sign, value = part.partition("=")
        if key == "disconnected" and not sign:
            fields["connected"] = False
        elif key in ("model", "mac", "fence") and value:
            fields[key] = value
        else:
            raise UsageError(
                f"--nic {text!r}: {part!r} is not understood.",
                hint="Write it like --nic default,model=e1000e,mac=52:54:00:12:34:56,disconnected.",
            )
    if "model" in fields and fields["model"] not in list(NicModel):
        raise UsageError(f"{fields['model']!r} is not a NIC model.", hint=f"There are {', '.join(NicModel)}.")
    return request(NicRequest, fields)


def nics(items: Sequence[str] | None, none: bool) -> tuple[NicRequest, ...] | None:
    """The NICs of a new VM; None leaves the choice to the daemon."""
    if none:
        if items:
            raise UsageError("--no-nic and --nic exclude each other.")
        return ()
    return tuple(nic(item) for item in items or ()) or None


def disk(text: str) -> DiskRequest:
    """'2G' for an empty disk, 'image=NAME' for an overlay of an image's first disk."""
    key, sign, value = text.partition("=")
    if sign and key == "image" and value:
        return DiskRequest(image=value)
    if sign and key == "size":
        text = value
    return DiskRequest(size_mib=parse_size_mib(text))


def assignments(items: Iterable[str] | None, option: str) -> dict[str, str]:
    """['net0=lab', …] to {'net0': 'lab'}; the NIC id is checked by the model."""
    pairs = {}
    for item in items or ():
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise UsageError(f"{option} {item!r} is not NIC=VALUE.", hint=f"Write it like {option} net0=….")
        pairs[name] = value
    return pairs


def nic_changes(networks: Iterable[str] | None, macs: Iterable[str] | None) -> tuple[NicChange, ...]:
    """--nic net0=lab and --mac net0=… of a clone, merged by NIC. 'net0=none' takes it off its port group, and
    'net0=copies,fence=shop' puts it into a fence that others share."""
    changes: dict[str, dict[str, Any]] = {}
    for name, text in assignments(networks, "--nic").items():
        network, comma, rest = text.partition(",")
        key, _, fence = rest.partition("=")
        if comma and (key != "fence" or not fence):
            raise UsageError(f"--nic {text!r}: {rest!r} is not understood.", hint="Write it like net0=lab,fence=one.")
        changes.setdefault(name, {"id": name})["network"] = "" if network == "none" else network
        if fence:
            changes[name]["fence"] = fence
    for name, mac in assignments(macs, "--mac").items():
        changes.setdefault(name, {"id": name})["mac"] = mac
    return tuple(request(NicChange, fields) for fields in changes.values())


def customizations(items: Iterable[str] | None) -> dict[str, str]:
    """['hostname=web-{n},address=10.0.0.{n}/24', '@values.toml'] to one table; a later value wins."""
    values: dict[str, str] = {}
    for item in items or ():
        if item.startswith("@"):
            values |= _customization_file(Path(item[1:]))
            continue
        for part in item.split(","):
            key, sign, value = part.partition("=")
            if not sign or not key or not value:
                raise UsageError(
                    f"--customize {part!r} is not KEY=VALUE.",
                    hint="Write it like hostname=web-{n},address=dhcp; several values of dns like 10.0.0.1+10.0.0.2.",
                )
            values[key.strip()] = value.strip()
    return values


def _customization_file(path: Path) -> dict[str, str]:
    """TOML or JSON: plain keys, or a table for each NIC; lists, as of dns, are joined."""
    try:
        text = path.read_text()
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}.") from exc
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except ValueError as exc:
        raise UsageError(
            f"{path} is neither TOML nor JSON: {exc}.", hint='Write lines like hostname = "web-{n}".'
        ) from exc
    values: dict[str, str] = {}
    for key, value in data.items():
        for name, item in value.items() if isinstance(value, dict) else ((None, value),):
            values[f"{key}.{name}" if name else key] = "+".join(map(str, item)) if isinstance(item, list) else str(item)
    return values


def parts(items: Iterable[str] | None) -> tuple[Part, ...]:
    """['ssh-keys', 'hooks,clock'] to the parts of an identity."""
    found = []
    for word in (word for item in items or () for word in item.split(",")):
        if word not in list(Part):
            raise UsageError(f"An identity has no part {word!r}.", hint=f"Its parts are: {', '.join(Part)}.")
        found.append(Part(word))
    return tuple(found)


OPTIONS = {
    "memory_mib": "--memory (MiB)",
    "vcpus": "--cpus",
    "cpu_limit_percent": "--cpu-limit",
    "max_stun_ms": "--max-stun",
    "extra_config": "--set",
    "set_config": "--set",
    "cdroms": "--cdrom",
    "timeout_s": "--timeout",
    "size_mib": "size (MiB)",
    "mac": "--mac",
    "memory_target_mib": "--memory-target (MiB)",
    "ttl_s": "--ttl",
    "count": "--count",
    "first": "--first",
    "key": "--key",
    "tcp": "--tcp",
    "identity_timeout_s": "--identity-timeout",
    "hooks_timeout_s": "--hooks-timeout",
    "freeze_hooks_timeout_s": "--hooks-timeout",
    "wait_network_s": "--wait-network",
}
"""What the user knows a field of a request as."""


def request(model: type[M], fields: dict[str, Any]) -> M:
    """Validate what the user asked for: `UsageError` in the words of the command line."""
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        field, sign, what = explain(exc).partition(": ")
        name = OPTIONS.get(field) or OPTIONS.get(field.rpartition(".")[2]) or re.sub(r"\.\d+$", "", field)
        raise UsageError(f"{name}{sign}{what}") from exc


def settings(items: Sequence[str]) -> dict[str, str]:
    """['--chain-bound', '4', '--log-level=debug'] to settings by name; whether they exist is the daemon's to say."""
    found = {}
    rest = list(items)
    while rest:
        name, sign, value = rest.pop(0).partition("=")
        if not name.startswith("--") or (not sign and not rest):
            raise UsageError(f"{name!r} is not a setting with a value.", hint="Write it like --chain-bound 4.")
        found[name.removeprefix("--").replace("-", "_")] = value if sign else rest.pop(0)
    return found


def ports(text: str) -> tuple[int, int]:
    """'8080:80' to (8080, 80); '80' stands for '80:80', and host port 0 for any free one."""
    host, sign, guest = text.partition(":")
    try:
        pair = (int(host), int(guest if sign else host))
    except ValueError:
        pair = (-1, -1)
    if not 0 <= pair[0] <= 65535 or not 1 <= pair[1] <= 65535:
        raise UsageError(f"{text!r} is not HOSTPORT:GUESTPORT.", hint="Write it like 8080:80.")
    return pair


def guest_path(text: str) -> tuple[str, str] | None:
    """'web:/etc/hosts' to ('web', '/etc/hosts'); None for a path of the host (a '/' before the ':', or no ':')."""
    name, sign, path = text.partition(":")
    if not sign or "/" in name or not name:
        return None
    if not path.startswith("/"):
        raise UsageError(f"{text!r}: paths in a guest are absolute.", hint=f"Write it like {name}:/root/{path}.")
    return name, path
