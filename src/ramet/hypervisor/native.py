"""The native files: the library that is preloaded into QEMU, and the holder. Where they are, how to launch under it.

Both are built with the package into ``ramet/_native``. A package under /root is out of reach for QEMU's own user, and
an upgrade in place would change a file that running VMs have mapped, so the daemon copies them into a directory of its
own, under names that carry their content.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import UnsupportedError, UsageError

_BUILT = Path(__file__).resolve().parent.parent / "_native"
ZYGOTE = "VMFORK_ZYGOTE"
"""A variable that, set to 1, makes a forked program wait before its main, and serve forks that go on from there."""

_SOCKET_PATH_MAX = 107  # sockaddr_un.sun_path, less the closing NUL


@dataclass(frozen=True)
class NativePaths:
    """Files that QEMU's user can read and run."""

    library: Path
    holder: Path


def library_problem(built: Path = _BUILT) -> str | None:
    """Why no VM can be forked with this installation, in one sentence; None when all is well."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"The fork library runs on Linux on x86-64 only so far; this is {sys.platform} on {platform.machine()}."
    if all((built / name).is_file() for name in ("vmfork.so", "vmfork-holder")):
        return None
    try:
        return (built / "problem.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return "The fork library was not built with this package."


def library(built: Path = _BUILT) -> NativePaths:
    """The files as built. Raises UnsupportedError with the reason when there are none."""
    problem = library_problem(built)
    if problem:
        raise UnsupportedError(problem, hint="Install a C compiler (gcc, libc6-dev) and the package again.")
    return NativePaths(built / "vmfork.so", built / "vmfork-holder")


def install_native(directory: Path, built: Path = _BUILT) -> NativePaths:
    """Copies the library and the holder into `directory`, for every user to read and run.

    The names carry a hash of the content: a file that a running VM has mapped is never written again. Every directory
    above must be open to QEMU's user; that is the caller's. Raises UnsupportedError as `library` does.
    """
    files = library(built)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory.chmod(0o755)
    return NativePaths(_install(files.library, directory), _install(files.holder, directory))


def _install(source: Path, directory: Path) -> Path:
    import hashlib  # 2 ms that only the daemon spends, not the stun helper

    content = source.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    target = directory / f"{source.stem}-{digest}{source.suffix}"
    if target.is_file() and target.stat().st_size == len(content):
        return target
    fd, temporary = tempfile.mkstemp(dir=directory, prefix=f".{source.stem}-")
    try:
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o755)
            os.fsync(file.fileno())
        os.rename(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target


def environment(paths: NativePaths, *, ram_fd: int, control_fd: int, owner_uid: int) -> dict[str, str]:
    """What a program needs in its environment to have its RAM forked, launched or forked itself.

    `ram_fd` and `control_fd` are numbers in the program. In a fork the library replaces LD_PRELOAD by its own path.
    """
    return {
        "LD_PRELOAD": os.fspath(paths.library),
        "VMFORK_RAM_FD": str(ram_fd),
        "VMFORK_CONTROL_FD": str(control_fd),
        "VMFORK_OWNER_UID": str(owner_uid),
    }


def create_ram(size_bytes: int) -> int:
    """A sparse memfd that names RAM of `size_bytes`; the memory itself is the program's own. The caller closes."""
    fd = os.memfd_create("ramet-ram", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def listen_control(path: Path) -> socket.socket:
    """A listening socket for fork requests at `path` (mode 0600). The caller closes it and removes the path.

    Raises UsageError when the path does not fit into a socket address, OSError as bind does.
    """
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise UsageError(
            f"The socket path {path} is longer than {_SOCKET_PATH_MAX} bytes.", hint="Use a shorter state directory."
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener
