"""The house rules that a machine can check: which room may import which, and what stands in files."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "ramet"

LOWER = {"hypervisor", "storage", "network", "guest", "memory"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "model": {"errors"},
    **{room: {"errors", "model"} for room in LOWER},
    "machine": {"errors", "model"} | LOWER,
    "clone": {"errors", "model", "machine"} | LOWER,
    "host": {"errors", "model", "machine", "clone"} | LOWER,
    "api": {"errors", "model", "host"},
    "vsphere": {"errors", "model", "host"},
    "serve": {"errors", "model", "host", "api", "vsphere"},
    "testing": {"errors", "model"} | LOWER,
    "bench": {"errors", "model", "machine", "host", "api", "testing"} | LOWER,
    "soak": {"errors", "model", "machine", "hypervisor", "network", "api", "testing", "bench"},
    "cli": {"errors", "model", "api", "serve", "bench"},
}
EXCEPTIONS = {
    ("cli", "host.settings"): "flags of 'ramet serve', and where the daemon's socket is",
    ("cli", "host"): "'ramet doctor' must answer where no daemon starts",
}
"""Doors that exist for a reason, each lazily, inside a function."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Imported ramet modules, and whether the import stands at the top of the file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    guarded = {
        id(child)
        for node in tree.body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found += [(name.removeprefix("ramet."), id(node) in top) for name in names if name.startswith("ramet.")]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for target, at_top in imports(path):
        other = target.split(".")[0]
        allowed = other == room or other in MAY_IMPORT[room] or target in MAY_IMPORT[room]
        excepted = not at_top and any(
            room == frm and (target == to or target.startswith(to + ".")) for frm, to in EXCEPTIONS
        )
        assert allowed or excepted, f"{path.relative_to(ROOT)} imports ramet.{target}"


def test_no_module_is_too_long() -> None:
    long = {str(path.relative_to(ROOT)): n for path in modules() if (n := len(path.read_text().splitlines())) > 500}
    assert not long


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]


def test_no_registry_and_no_private_path_stands_in_a_file() -> None:
    hosts = re.compile(rb"(files\.pythonhosted|pypi\.org/simple|deb\.debian\.org|registry\.npmjs|/work/(main|shared))")
    found = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path != Path(__file__) and hosts.search(path.read_bytes())
    ]
    assert not found
