"""The kernel of guests that are no image: this host's own, else a packaged one, which is unpacked and not installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ramet.guest.images import apt

_PACKAGES = ("linux-image-cloud-amd64", "linux-image-amd64", "linux-image-generic")


@dataclass(frozen=True)
class GuestKernel:
    image: Path
    modules: Path
    """The folder of its own version."""


def find_kernel(root: Path = Path("/")) -> GuestKernel | None:
    """The one whose drivers are few and whose start is quick, where there are several; None without modules of it."""
    for image in sorted((root / "boot").glob("vmlinuz-*"), key=lambda path: "cloud" not in path.name):
        version = image.name.removeprefix("vmlinuz-")
        for folder in (root / "usr/lib/modules", root / "lib/modules"):
            if (folder / version).is_dir():
                return GuestKernel(image, folder / version)
    return None


async def unpack_kernel(into: Path) -> GuestKernel:
    """From the machine's package sources; some 30 MB, kept between runs."""
    packages = await apt.kernel_packages(await apt.first_known(_PACKAGES))
    await apt.unpack(await apt.download(packages, apt.cache_directory() / "test-kernel"), into)
    found = find_kernel(into)
    assert found is not None, f"{packages} have no kernel with modules"
    return found
