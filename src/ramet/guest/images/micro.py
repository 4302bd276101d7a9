"""Build the micro guest: a kernel, busybox, the real guest agent and Ramet's tools in RAM. For tests and benchmarks.

Nothing is installed on the host: packages come from its apt sources into a cache and are unpacked there.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ramet.errors import ToolError
from ramet.guest.guestfiles import guest_file, identity_files
from ramet.guest.images import apt
from ramet.guest.images.built import BuiltImage, Progress, ignore_progress, sha256_of
from ramet.guest.images.bzimage import direct_kernel
from ramet.guest.images.children import run
from ramet.guest.images.cpio import Cpio
from ramet.guest.images.modules import alias_index, collect, dependency_index, kernel_version

# The cloud kernel would be smaller, but has neither e1000e nor the driver of the VM generation id.
_KERNELS = ("linux-image-amd64", "linux-image-generic")
_MODULES = (
    *("virtio_pci", "virtio_console", "virtio_rng", "virtio_balloon", "virtio_net", "virtio_blk", "virtio_scsi"),
    *("sd_mod", "e1000e", "vmxnet3", "ext4", "crc32c_generic", "crc32c_intel", "button", "evdev", "pvpanic_pci"),
    *("ahci", "sr_mod", "isofs", "bochs", "virtio_gpu"),
    # Without these the kernel cannot end connections: see files/identity.
    *("inet_diag", "tcp_diag"),
)
_APPEND = (
    # tty0 first: the last console named is the one that /dev/console means.
    "console=tty0 console=ttyS0 quiet panic=-1 mitigations=off audit=0 cryptomgr.notests "
    "random.trust_cpu=on i8042.noaux"
)
_MEMORY_MIB = 128
_ASK_S = 60.0


async def build_micro(destination: Path, progress: Progress = ignore_progress) -> BuiltImage:
    """Build into `destination` (made if missing): kernel, initrd. Files there are replaced one by one by renames.

    Raises `ToolError` when a package or tool is missing. Cancelled, it leaves nothing behind but downloaded packages.
    """
    destination.mkdir(parents=True, exist_ok=True)
    cache = apt.cache_directory()
    with tempfile.TemporaryDirectory(prefix=".micro-", dir=destination) as scratch_name:
        scratch = Path(scratch_name)
        progress(0, "downloading packages")
        kernel, agent = await _packages(cache)
        progress(40, "unpacking the kernel")
        await apt.unpack(kernel, scratch / "kernel")
        progress(60, "unpacking the guest agent")
        await apt.unpack(agent, scratch / "root")
        libraries = await _libraries(scratch / "root")
        progress(70, "packing the guest")
        await asyncio.to_thread(_write, scratch, libraries)
        progress(95, "computing checksums")
        return await asyncio.to_thread(_finish, scratch, destination)


async def _packages(cache: Path) -> tuple[list[Path], list[Path]]:
    """(Kernel's archives, archives with busybox, agent and the libraries of that)."""
    meta = await apt.first_known(_KERNELS)
    kernel = await apt.download(await apt.kernel_packages(meta), cache / "micro-kernel")
    agent = await apt.download_closure("qemu-guest-agent", cache / "micro-agent")
    agent += await apt.download(["busybox-static"], cache / "micro-agent")
    for old in {*cache.glob("micro-*/*.deb")} - {*kernel, *agent}:
        old.unlink(missing_ok=True)
    # The agent's closure has tools of the base system; their files are of no use here, the libraries are.
    wanted = re.compile(r"^(lib|qemu-guest-agent|busybox|zlib)")
    return kernel, [path for path in agent if wanted.match(path.name)]


async def _libraries(root: Path) -> dict[str, Path]:
    """Guest path -> file, of the loader and the libraries that the agent needs, as the loader itself finds them."""
    loader = next((path for path in root.glob("**/ld-linux-x86-64.so.2") if path.is_file()), None)
    if loader is None:
        raise ToolError("The packages hold no x86-64 loader.")
    folders = ":".join(str(root / part / "x86_64-linux-gnu") for part in ("lib", "usr/lib"))
    listing = await run([loader, "--library-path", folders, "--list", root / "usr/sbin/qemu-ga"], timeout_s=_ASK_S)
    found = {f"lib/{name}": Path(path) for name, path in re.findall(r"^\s*(\S+) => (/\S+)", listing, re.MULTILINE)}
    strangers = [path for path in found.values() if not path.is_relative_to(root)]
    if strangers or "not found" in listing:
        raise ToolError(f"The packages lack libraries of the guest agent: {listing.strip()}")
    return {**found, "lib64/ld-linux-x86-64.so.2": loader}


def _write(scratch: Path, libraries: dict[str, Path]) -> None:
    """Kernel and initrd, from the unpacked packages."""
    image = next((scratch / "kernel/boot").glob("vmlinuz-*")).read_bytes()
    (scratch / "vmlinuz").write_bytes(direct_kernel(image) or image)
    root = _guest(scratch, libraries)
    packed = subprocess.run(["lz4", "-l", "-9", "-c"], input=root.pack(), capture_output=True, check=True, timeout=120)
    (scratch / "initrd.img").write_bytes(packed.stdout)


def _guest(scratch: Path, libraries: dict[str, Path]) -> Cpio:
    root = Cpio()
    for path in (
        "dev",
        "proc",
        "sys",
        "run",
        "root",
        "etc",
        "var/log",
        "tmp",
        "mnt",
        "run/ramet",
        "etc/ramet/clone.d",
        "etc/ramet/freeze.d",
    ):
        root.directory(path)
    root.symlink("var/run", "/run")
    root.device("dev/console", 5, 1)
    _add_busybox(root, scratch / "root/bin/busybox")
    root.file("usr/sbin/qemu-ga", (scratch / "root/usr/sbin/qemu-ga").read_bytes(), 0o755)
    for path, source in libraries.items():
        root.file(path, source.read_bytes(), 0o755)
    _add_modules(root, scratch / "kernel")
    _add_files(root)
    return root


def _add_busybox(root: Cpio, busybox: Path) -> None:
    root.file("bin/busybox", busybox.read_bytes(), 0o755)
    done = subprocess.run([busybox, "--list-full"], capture_output=True, check=True, timeout=10, text=True)
    for path in done.stdout.split():
        if path not in root:
            root.symlink(path, "/bin/busybox")
    root.symlink("init", "/bin/busybox")


def _add_modules(root: Cpio, kernel: Path) -> None:
    tree = next(path for path in (kernel / "usr/lib/modules", kernel / "lib/modules") if path.is_dir())
    version = kernel_version(tree)
    modules = collect(tree / version, _MODULES)
    folder = f"lib/modules/{version}"
    for module in modules.values():
        root.file(f"{folder}/{module.name}.ko", module.content)
    root.file(f"{folder}/modules.dep", dependency_index(modules).encode())
    root.file(f"{folder}/modules.alias", alias_index(modules).encode())
    root.file(f"{folder}/modules.symbols", b"")


def _add_files(root: Cpio) -> None:
    for name in ("start", "nic", "dhcp", "agent", "script"):
        root.file(f"etc/micro/{name}", guest_file(f"micro/{name}"), 0o755)
    root.file("etc/inittab", guest_file("micro/inittab"))
    root.file("etc/mdev.conf", guest_file("micro/mdev.conf"))
    # q35 always has the controller; its driver's tenth of a second is spent only on guests that ask for it.
    root.file("etc/modprobe.conf", b"blacklist ahci\n")
    # What "mount" without a type tries; the kernel loads the driver, and lists it only from then on.
    root.file("etc/filesystems", b"ext4\niso9660\n")
    root.file("sbin/shutdown", guest_file("micro/shutdown"), 0o755)
    root.symlink("etc/acpi/PWRF/00000080", "/sbin/shutdown")
    root.file("etc/os-release", b'ID=ramet-micro\nNAME="Ramet micro"\nPRETTY_NAME="Ramet micro guest"\n')
    root.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    root.file("etc/group", b"root:x:0:\n")
    root.file("etc/hosts", b"127.0.0.1 localhost\n")
    root.file("etc/profile", b"export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\ncd /root\n")
    for path, content in identity_files():
        root.file(path[1:], content, 0o700)
    for name in ("vmware-rpctool", "vmtoolsd"):
        root.file(f"usr/local/bin/{name}", guest_file(name), 0o755)
        root.symlink(f"usr/bin/{name}", f"/usr/local/bin/{name}")


def _finish(scratch: Path, destination: Path) -> BuiltImage:
    digests = {}
    for name in ("vmlinuz", "initrd.img"):
        digests[name] = sha256_of(scratch / name)
        shutil.move(scratch / name, destination / name)
    return BuiltImage(
        recipe="micro",
        memory_mib=_MEMORY_MIB,
        kernel=destination / "vmlinuz",
        initrd=destination / "initrd.img",
        append=_APPEND,
        sha256=digests,
    )
