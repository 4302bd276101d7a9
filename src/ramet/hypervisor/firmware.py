"""Where the UEFI firmware of this host is: QEMU's firmware descriptors say it, the same way on every distribution."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

_DESCRIPTOR_DIRS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))

# Where distributions put it before they shipped descriptors. Code and variables belong together.
_KNOWN_PAIRS = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)

# Secure boot needs SMM, which Ramet's machines go without; the confidential kinds need hardware.
_UNWANTED = frozenset({"secure-boot", "requires-smm", "enrolled-keys"})


@dataclass(frozen=True, slots=True)
class UefiFirmware:
    """A pair of flash images: `code` is shared and read-only, `variables` is the template of a VM's own."""

    code: Path
    variables: Path


def find_uefi(dirs: tuple[Path, ...] = _DESCRIPTOR_DIRS) -> UefiFirmware | None:
    """The first plain x86-64 UEFI that is installed, or None."""
    for descriptor in _descriptors(dirs):
        found = _from_descriptor(descriptor)
        if found is not None and found.code.exists() and found.variables.exists():
            return found
    for code, variables in _KNOWN_PAIRS:
        if Path(code).exists() and Path(variables).exists():
            return UefiFirmware(Path(code), Path(variables))
    return None


def _descriptors(dirs: tuple[Path, ...]) -> list[dict[str, Any]]:
    """In the order that QEMU's documentation gives: by file name, a directory of the administrator's shadowing."""
    by_name: dict[str, Path] = {}
    for directory in reversed(dirs):
        for path in sorted(directory.glob("*.json")) if directory.is_dir() else ():
            by_name[path.name] = path
    loaded = []
    for name in sorted(by_name):
        try:
            content = json.loads(by_name[name].read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            loaded.append(content)
    return loaded


def _from_descriptor(descriptor: dict[str, Any]) -> UefiFirmware | None:
    mapping = descriptor.get("mapping", {})
    suits = (
        "uefi" in descriptor.get("interface-types", [])
        and mapping.get("device") == "flash"
        and mapping.get("mode", "split") == "split"
        and not _UNWANTED & set(descriptor.get("features", []))
        and any(_is_q35(target) for target in descriptor.get("targets", []))
    )
    code, variables = mapping.get("executable", {}), mapping.get("nvram-template", {})
    if not suits or code.get("format") != "raw" or variables.get("format") != "raw":
        return None
    return UefiFirmware(Path(code["filename"]), Path(variables["filename"]))


def _is_q35(target: dict[str, Any]) -> bool:
    machines = target.get("machines", [])
    return target.get("architecture") == "x86_64" and any(fnmatch("pc-q35-7.2", pattern) for pattern in machines)
