"""Kernel modules: which are needed for a list of them, and the two indexes that busybox's modprobe reads."""

from __future__ import annotations

import lzma
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import ToolError

_SUFFIX = re.compile(r"\.ko(\.xz|\.zst|\.gz)?$")
_MODINFO = re.compile(rb"(?<![a-z])(depends|alias)=([ -~]*)\0")


@dataclass(frozen=True)
class Module:
    """A module's content, uncompressed, and what its .modinfo section says."""

    name: str
    content: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def _canonical(name: str) -> str:
    return name.replace("-", "_")


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix in (".zst", ".gz"):
        tool = {".zst": "zstd", ".gz": "gzip"}[path.suffix]
        return subprocess.run([tool, "-dc"], input=content, capture_output=True, check=True, timeout=60).stdout
    return content


def parse(name: str, content: bytes) -> Module:
    """What the kernel's build wrote into .modinfo as NUL-terminated key=value strings."""
    found: dict[bytes, list[str]] = {b"depends": [], b"alias": []}
    for key, value in _MODINFO.findall(content):
        found[key].append(value.decode())
    depends = tuple(_canonical(dep) for line in found[b"depends"] for dep in line.split(",") if dep)
    return Module(name, content, depends, tuple(found[b"alias"]))


def collect(tree: Path, wanted: Iterable[str], builtin: Iterable[str] = ()) -> dict[str, Module]:
    """Blocking. The wanted modules and all that they need, from below a /lib/modules/VERSION, by name.

    A wanted one that the kernel has built in, or does not have, is left out; a needed one that is missing is
    a `ToolError`.
    """
    files = {_canonical(_SUFFIX.sub("", path.name)): path for path in tree.rglob("*.ko*") if _SUFFIX.search(path.name)}
    have = {_canonical(name) for name in builtin}
    chosen: dict[str, Module] = {}
    waiting = [name for name in map(_canonical, wanted) if name in files]
    while waiting:
        name = waiting.pop()
        if name in chosen or name in have:
            continue
        if name not in files:
            raise ToolError(f"The kernel package lacks the module {name}, which another one needs.")
        chosen[name] = parse(name, _read(files[name]))
        waiting.extend(chosen[name].depends)
    return chosen


def dependency_index(modules: dict[str, Module]) -> str:
    """modules.dep: each module's file, a colon, and all that must be there before it, the nearest first."""

    def needs(name: str) -> list[str]:
        order: list[str] = []
        for dep in modules[name].depends:
            for one in (dep, *needs(dep)):
                if one in modules:
                    order = [x for x in order if x != one] + [one]
        return order

    return "".join(f"{name}.ko: {' '.join(f'{dep}.ko' for dep in needs(name))}".rstrip() + "\n" for name in modules)


def alias_index(modules: dict[str, Module]) -> str:
    """modules.alias: patterns of hardware and of names, and the module for each."""
    return "".join(f"alias {alias} {module.name}\n" for module in modules.values() for alias in module.aliases)


def kernel_version(tree: Path) -> str:
    """The only version below a /lib/modules; raises `ToolError` if it is not one."""
    versions = sorted(path.name for path in tree.iterdir() if path.is_dir())
    if len(versions) != 1:
        raise ToolError(f"Expected one kernel version below {tree}, found {', '.join(versions) or 'none'}.")
    return versions[0]
