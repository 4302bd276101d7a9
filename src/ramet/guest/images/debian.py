"""Build the Debian guest: systemd, sshd, the guest agent and Ramet's tools on a disk that boots by itself.

The packages come from this machine's own apt sources; on Ubuntu it becomes an Ubuntu guest.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import ToolError, UsageError
from ramet.guest.guestfiles import guest_file, identity_files
from ramet.guest.images import apt
from ramet.guest.images.bootdisk import install_grub, make_file_system
from ramet.guest.images.built import BuiltImage, Progress, ignore_progress, sha256_of
from ramet.guest.images.children import run
from ramet.model.units import MIB

# Small and quick to start. It has no e1000e driver; "generic" has, and the one for the VM generation id.
_KERNELS = {
    "cloud": ("linux-image-cloud-amd64", "linux-image-virtual"),
    "generic": ("linux-image-amd64", "linux-image-generic"),
}
_PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "initramfs-tools", "lz4", "zstd"),
    *("qemu-guest-agent", "openssh-server", "openssh-client", "iproute2", "iputils-ping", "fdisk", "e2fsprogs"),
    *("ca-certificates", "less", "procps", "kmod", "util-linux", "login"),
)
_PACKAGE_NAME = re.compile(r"^[a-z0-9][a-z0-9+.-]+$")
_MEMORY_MIB = 512
_MIN_SIZE_MIB = 1024
_QUERY_S = 60.0
_BOOTSTRAP_S = 1800.0
_UNPACK_S = 300.0
# What mmdebstrap says, in its order, and how far that is.
_STAGES = (
    ("running apt-get update", 5, "reading package lists"),
    ("downloading packages with apt", 10, "downloading the base system"),
    ("extracting archives", 15, "unpacking the base system"),
    ("installing essential packages", 20, "installing the base system"),
    ("installing remaining packages", 35, "installing packages"),
    ("running --customize-hook", 75, "setting up the guest"),
    ("cleaning package lists", 80, "cleaning up"),
    ("creating tarball", 82, "packing the guest"),
)


@dataclass(frozen=True)
class Sources:
    """Where the packages come from: a release's code name, and lines as in sources.list."""

    codename: str
    origin: str
    lines: tuple[str, ...]


async def machine_sources() -> Sources:
    """This machine's own sources, as far as they are Debian's or Ubuntu's; `ToolError` if there are none."""
    form = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(CODENAME)"
    listing = await run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], timeout_s=_QUERY_S)
    return parse_sources(listing)


def parse_sources(listing: str) -> Sources:
    """Lines of ORIGIN|URI|RELEASE|COMPONENT|CODENAME to sources."""
    rows = [line.split("|") for line in dict.fromkeys(listing.splitlines())]
    rows = [row for row in rows if len(row) == 5 and row[0] in ("Debian", "Ubuntu")]
    main = [row for row in rows if row[3] == "main" and "-" not in row[4]]
    if not main:
        raise ToolError(
            "This machine's apt has no Debian or Ubuntu sources.", hint="Run apt-get update, then try again."
        )
    components: dict[tuple[str, str], list[str]] = {}
    for _, uri, release, component, _ in rows:
        components.setdefault((uri, release), []).append(component)
    lines = tuple(f"deb {uri} {release} {' '.join(parts)}" for (uri, release), parts in components.items())
    return Sources(codename=main[0][4], origin=main[0][0], lines=lines)


async def build_debian(
    destination: Path,
    *,
    size_mib: int = 4096,
    packages: Sequence[str] = (),
    kernel: str = "cloud",
    progress: Progress = ignore_progress,
) -> BuiltImage:
    """Build `destination`/disk.img, a sparse raw disk of `size_mib`, with `packages` installed beside the usual.

    `kernel` is 'cloud' or 'generic'. As root, or as a user who may make user namespaces with subordinate ids.
    Takes about a minute. Raises `ToolError` when a package or tool is missing. Failed or cancelled, it leaves nothing.
    """
    _check(size_mib, packages, kernel)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".debian-", dir=destination) as scratch_name:
        scratch = Path(scratch_name)
        progress(0, "reading the package sources")
        fs_uuid = str(uuid.uuid4())
        include = [*_PACKAGES, await apt.first_known(_KERNELS[kernel]), *packages]
        await asyncio.to_thread(_write_overlay, scratch / "overlay.tar", fs_uuid)
        await _bootstrap(await machine_sources(), include, scratch, progress)
        progress(86, "making the file system")
        await _make_disk(scratch, fs_uuid, size_mib)
        progress(96, "computing the checksum")
        return await asyncio.to_thread(_finish, scratch, destination, size_mib)


def _check(size_mib: int, packages: Sequence[str], kernel: str) -> None:
    if size_mib < _MIN_SIZE_MIB:
        raise UsageError(f"A Debian guest needs a disk of at least {_MIN_SIZE_MIB} MiB.")
    if kernel not in _KERNELS:
        raise UsageError(f"{kernel!r} is not a kernel flavour.", hint=f"Use {' or '.join(_KERNELS)}.")
    for name in packages:
        if not _PACKAGE_NAME.match(name):
            raise UsageError(f"{name!r} is not a package's name.")


def _overlay_files(fs_uuid: str) -> Iterator[tuple[str, bytes, int]]:
    """(Path, content, mode) of what is laid over the base system before the other packages come."""
    library = "usr/lib/ramet"
    for name in ("install-tools", "vmware-rpctool", "vmtoolsd"):
        yield f"{library}/{name}", guest_file(name), 0o755
    yield f"{library}/tmpfiles.conf", guest_file("tmpfiles.conf"), 0o644
    for path, content in identity_files():
        yield path[1:], content, 0o700
    for name in ("setup", "firstboot", "guestinfo", "resolv"):
        yield f"{library}/{name}", guest_file(f"debian/{name}"), 0o755
    yield "etc/initramfs-tools/hooks/ramet", guest_file("debian/initramfs-hook"), 0o755
    yield "etc/initramfs-tools/conf.d/ramet", guest_file("debian/initramfs.conf"), 0o644
    for unit in ("ramet-firstboot.service", "ramet-guestinfo.service", "ramet-resolv.service", "ramet-resolv.path"):
        yield f"etc/systemd/system/{unit}", guest_file(f"debian/{unit}"), 0o644
    yield "etc/udev/rules.d/90-ramet.rules", guest_file("debian/ramet.rules"), 0o644
    yield "etc/systemd/network/80-dhcp.network", guest_file("debian/dhcp.network"), 0o644
    yield "etc/systemd/system/serial-getty@.service.d/autologin.conf", guest_file("debian/autologin.conf"), 0o644
    yield "boot/grub/grub.cfg", guest_file("debian/grub.cfg").replace(b"@UUID@", fs_uuid.encode()), 0o644
    yield "etc/fstab", f"UUID={fs_uuid} / ext4 errors=remount-ro 0 1\n".encode(), 0o644
    yield "etc/hostname", b"debian\n", 0o644
    yield "etc/hosts", b"127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n", 0o644


def _write_overlay(path: Path, fs_uuid: str) -> None:
    with tarfile.open(path, "w") as archive:
        made: set[str] = set()
        for name, content, mode in _overlay_files(fs_uuid):
            for parent in [*Path(name).parents][-2::-1]:
                if str(parent) not in made:
                    made.add(str(parent))
                    archive.addfile(_entry(str(parent), 0o755, tarfile.DIRTYPE))
            entry = _entry(name, mode, tarfile.REGTYPE)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _entry(name: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.type = mode, kind
    return entry


async def _bootstrap(sources: Sources, include: Sequence[str], scratch: Path, progress: Progress) -> None:
    """root.tar in `scratch`."""

    def stage(line: str) -> None:
        for words, percent, doing in _STAGES:
            if words in line:
                progress(percent, doing)

    argv: list[str | Path] = [*_private_mounts(), "mmdebstrap", "--variant=minbase", "--format=tar"]
    argv += ['--aptopt=Apt::Install-Recommends "0"', f"--include={','.join(include)}"]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")]
    argv += [f"--essential-hook=tar-in {scratch / 'overlay.tar'} /"]
    argv += ['--customize-hook=chroot "$1" sh /usr/lib/ramet/setup']
    argv += [sources.codename, scratch / "root.tar", *sources.lines]
    # As root its temporary files can stand with ours: whatever happens, they are removed and nothing is mounted there.
    env = {"TMPDIR": str(scratch)} if os.geteuid() == 0 else {}
    await run(argv, timeout_s=_BOOTSTRAP_S, env=env, on_error_line=stage)


def _private_mounts() -> list[str]:
    """For root: mounts, and every process of the build, end with the first of them."""
    if os.geteuid() != 0:
        return []
    return ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]


def _become_owner() -> list[str]:
    """For others than root: be root of a user namespace, so that unpacked files can have owners."""
    return [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--map-auto"]


async def _make_disk(scratch: Path, fs_uuid: str, size_mib: int) -> None:
    tree, disk, enter = scratch / "root", scratch / "disk.img", _become_owner()
    tree.mkdir()
    try:
        # Without device nodes, which a user namespace may not make and the guest's devtmpfs has.
        unpack: list[str | Path] = [*enter, "tar", "-x", "-p", "--numeric-owner", "--exclude=./dev/*"]
        unpack += ["--xattrs", "--xattrs-include=*", "-C", tree, "-f", scratch / "root.tar"]
        await run(unpack, timeout_s=_UNPACK_S)
        await make_file_system(disk, tree, fs_uuid, size_mib, scratch, enter)
    finally:
        await asyncio.shield(run([*enter, "rm", "-rf", tree], timeout_s=_UNPACK_S))
    await install_grub(disk, scratch)


def _finish(scratch: Path, destination: Path, size_mib: int) -> BuiltImage:
    digest = sha256_of(scratch / "disk.img")
    shutil.move(scratch / "disk.img", destination / "disk.img")
    return BuiltImage(
        recipe="debian",
        memory_mib=_MEMORY_MIB,
        disk=destination / "disk.img",
        disk_size_bytes=size_mib * MIB,
        sha256={"disk.img": digest},
    )
