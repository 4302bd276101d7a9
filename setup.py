"""Builds the native files with the C compiler of the machine. Everything else is in pyproject.toml.

Without a compiler, or on another architecture, the package still installs, and says why it cannot fork VMs
(`ramet.hypervisor.native.library_problem`).
"""

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

HERE = Path(__file__).parent
NATIVE = Path("native")
LIBRARY = ["ram.c", "server.c", "fork.c", "zygote.c", "layout.c", "request.c", "leap_x86_64.S"]
CFLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Wshadow"]
LINK_LIBRARY = ["-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wl,-z,now,-z,relro,-z,noexecstack"]
# Runs in guests, whatever they are made of: nothing from this machine's C library.
LINK_GUEST = [
    *("-Os", "-g0", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-Wl,-s,--build-id=none,-z,noseparate-code,-z,norelro,-z,noexecstack"),
]
LINK_HOLDER = ["-fPIE", "-pie", "-Wl,-z,now,-z,relro,-z,noexecstack"]


class BuildNative(Command):
    """Compiles native/ into ramet/_native: in the source tree for an editable install, else in the build directory."""

    description = "build the fork library and the holder"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        directory = self._directory()
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        problem = find_problem() or self._compile(directory)
        if problem:
            self.warn(problem)
            (directory / "problem.txt").write_text(problem + "\n", encoding="utf-8")

    def _compile(self, directory: Path) -> str | None:
        try:
            link(directory / "vmfork.so", LINK_LIBRARY, LIBRARY)
            link(directory / "vmfork-holder", LINK_HOLDER, ["holder.c"])
            link(directory / "guest-helper", LINK_GUEST, ["guest.c"])
        except (OSError, subprocess.CalledProcessError) as error:
            return f"The fork library could not be compiled: {error}."
        return None

    def _directory(self) -> Path:
        base = HERE / "src" if self.editable_mode else HERE / (self.build_lib or "build/lib")
        return base / "ramet" / "_native"

    def get_source_files(self) -> list[str]:
        return [os.fspath(path) for path in sorted(NATIVE.iterdir()) if path.suffix in (".c", ".h", ".S")]

    def get_outputs(self) -> list[str]:
        return [os.fspath(path) for path in sorted(self._directory().iterdir())]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildAll(build):
    # Last: build_py copies what an editable build has left in the source tree.
    sub_commands: ClassVar[list] = [*build.sub_commands, ("build_native", None)]


class NativeDistribution(Distribution):
    """A wheel with native files is for one platform."""

    def has_ext_modules(self) -> bool:
        return True


def link(target: Path, flags: list[str], sources: list[str]) -> None:
    paths = [os.fspath(NATIVE / name) for name in sources]
    subprocess.run([*compiler(), *CFLAGS, *flags, "-o", os.fspath(target), *paths, "-ldl"], check=True, cwd=HERE)


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def find_problem() -> str | None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        host = f"{platform.system()} on {platform.machine()}"
        return f"The fork library runs on Linux on x86-64 only so far; this is {host}."
    if shutil.which(compiler()[0]) is None:
        return f"The fork library was not built: there was no C compiler ({compiler()[0]}) at installation."
    return None


setup(cmdclass={"build": BuildAll, "build_native": BuildNative}, distclass=NativeDistribution)
