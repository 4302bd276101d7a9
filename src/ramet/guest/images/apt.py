"""Packages from the machine's own apt sources, downloaded and unpacked without installing anything, as any user."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ramet.errors import ToolError
from ramet.guest.images.children import run

_DOWNLOAD_S = 900.0
_UNPACK_S = 300.0
_QUERY_S = 60.0
_HINT = "Run apt-get update, and check that the machine reaches its package sources."


def cache_directory() -> Path:
    """Where downloaded packages are kept between builds: /var/cache/ramet for root, else below ~/.cache."""
    if os.geteuid() == 0:
        return Path("/var/cache/ramet/packages")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ramet" / "packages"


def _options() -> list[str]:
    # As root apt would download as user _apt, who cannot write where we want the files.
    return ["-q", "-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else ["-q"]


async def first_known(names: Sequence[str]) -> str:
    """The first of some package names that the sources have; raises `ToolError` if none."""
    known = (await run(["apt-cache", "pkgnames"], timeout_s=_QUERY_S)).split()
    for name in names:
        if name in known:
            return name
    raise ToolError(f"None of {', '.join(names)} is in this machine's package sources.", hint=_HINT)


async def kernel_packages(meta: str) -> list[str]:
    """The packages with kernel and modules that a kernel's meta-package stands for now."""
    found = [meta]
    for name in found:
        shown = await run(["apt-cache", "depends", "--important", name], timeout_s=_QUERY_S)
        for depends in re.findall(r"^\s*\|?Depends: (linux-(?:image|modules)\S*)$", shown, re.MULTILINE):
            if depends not in found and "unsigned" not in depends:
                found.append(depends)
    return [name for name in found if re.search(r"\d\.\d", name)]


async def download(packages: Sequence[str], into: Path) -> list[Path]:
    """Fetch just these packages, as ``apt-get download`` does (signatures checked); one already there is kept."""
    into.mkdir(parents=True, exist_ok=True)
    shown = await run(["apt-get", *_options(), "download", "--print-uris", *packages], timeout_s=_QUERY_S)
    return await _fetch(shown, ["apt-get", *_options(), "download", *packages], into, into)


async def download_closure(package: str, into: Path) -> list[Path]:
    """Fetch a package and all that it depends on, as for a machine on which nothing is installed yet."""
    (into / "partial").mkdir(parents=True, exist_ok=True)
    fetch = [
        *("apt-get", *_options(), "install", "-y", "--download-only", "--no-install-recommends"),
        *("-o", "Dir::State::status=/dev/null", "-o", "Debug::NoLocking=1", "-o", f"Dir::Cache::archives={into}"),
        package,
    ]
    with tempfile.TemporaryDirectory(prefix="ramet-apt-") as empty:
        (Path(empty) / "partial").mkdir()
        # Asked with an empty archive directory, or it would leave out what is there already.
        listing = [*fetch, "--print-uris", "-o", f"Dir::Cache::archives={empty}"]
        shown = await run(listing, timeout_s=_QUERY_S)
    return await _fetch(shown, fetch, into, into)


async def _fetch(uris: str, fetch: list[str], cwd: Path, into: Path) -> list[Path]:
    """Lines of --print-uris are: 'URI' FILE SIZE HASH. Complete files are not fetched again."""
    wanted = {into / name: int(size) for name, size in re.findall(r"^'[^']+' (\S+) (\d+)", uris, re.MULTILINE)}
    if not wanted:
        raise ToolError("apt named no package to download.", hint=_HINT)
    if any(not path.is_file() or path.stat().st_size != size for path, size in wanted.items()):
        await run(fetch, cwd=cwd, timeout_s=_DOWNLOAD_S)
    missing = [path.name for path in wanted if not path.is_file()]
    if missing:
        raise ToolError(f"apt did not download {', '.join(missing)}.", hint=_HINT)
    return list(wanted)


async def unpack(archives: Sequence[Path], into: Path) -> None:
    """Unpack packages' files below a directory; no maintainer script runs."""
    await asyncio.to_thread(into.mkdir, parents=True, exist_ok=True)
    for archive in archives:
        await run(["dpkg-deb", "-x", archive, into], timeout_s=_UNPACK_S)
