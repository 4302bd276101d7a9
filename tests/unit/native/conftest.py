from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.hypervisor.fork import NativePaths
from tests.unit.native.native_kit import LIBRARY_SOURCES, NATIVE, PROGRAMS, Nursery, compile_c


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    usable = platform.machine() == "x86_64" and shutil.which("cc")
    for item in items:
        if not usable and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs x86-64 and a C compiler"))


@pytest.fixture(scope="session")
def public() -> Iterator[Path]:
    """A directory that every user can enter; pytest's own are closed, and every session of it closes them again."""
    with tempfile.TemporaryDirectory(prefix="ramet-native-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def native_paths(public: Path) -> NativePaths:
    """The library and the holder of this tree, compiled with every warning an error."""
    sources = [os.fspath(NATIVE / name) for name in LIBRARY_SOURCES]
    flags = ["-O2", "-g", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wl,-z,now,-z,relro,-z,noexecstack"]
    library = compile_c(public / "vmfork.so", *flags, *sources, "-ldl")
    holder = compile_c(public / "vmfork-holder", "-O2", os.fspath(NATIVE / "holder.c"), "-ldl")
    return NativePaths(library, holder)


@pytest.fixture(scope="session")
def guest_program(public: Path) -> Path:
    return compile_c(public / "guest", "-O1", os.fspath(PROGRAMS / "guest.c"), "-pthread")


@pytest.fixture(scope="session")
def pure_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pure parts of the library under AddressSanitizer and UndefinedBehaviorSanitizer."""
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    sources = (os.fspath(path) for path in (PROGRAMS / "pure.c", NATIVE / "request.c", NATIVE / "layout.c"))
    return compile_c(tmp_path_factory.mktemp("pure") / "pure", "-O1", "-g", *sanitizers, f"-I{NATIVE}", *sources)


@pytest.fixture
def nursery(tmp_path: Path, native_paths: NativePaths, guest_program: Path) -> Iterator[Nursery]:
    with Nursery(tmp_path, native_paths, guest_program) as nursery:
        yield nursery
