"""What is learnt of a QEMU binary, and what follows from its version."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from ramet.errors import UnsupportedError
from ramet.hypervisor.elf import read_elf
from ramet.hypervisor.version import find_qemu
from tests.unit.hypervisor.plan_kit import QEMU, with_version

HAS_QEMU = shutil.which("qemu-system-x86_64") is not None

FAKE = """#!/bin/sh
case "$*" in
    --version) echo "QEMU emulator version {version}";;
    *"-machine help") printf 'pc-q35-8.0  x\\npc-q35-10.1  x\\npc-q35-9.2  x\\nq35  x\\n';;
    *"-device help") printf 'name "VGA", bus PCI\\nname "e1000e", bus PCI\\n';;
    *"-accel help") printf 'Accelerators supported in QEMU binary:\\ntcg\\nkvm\\n';;
    *"-netdev help") printf 'Available netdev backend types:\\ntap\\nuser\\n';;
    *migration,help) printf 'migration options:\\n  announce-rounds=<size>\\n  x-max-bandwidth=<size>\\n';;
esac
"""


def fake_qemu(directory: Path, version: str) -> Path:
    """A QEMU that only answers questions. It is a script, which `find_qemu` must be told to take for a program."""
    path = directory / "qemu"
    path.write_text(FAKE.format(version=version))
    path.chmod(0o755)
    return path


@pytest.fixture
def dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts pass for dynamic programs with this build id."""
    elf = dataclasses.replace(read_elf(Path("/bin/sh").resolve()), build_id="feed")
    monkeypatch.setattr("ramet.hypervisor.version.read_elf", lambda _: elf)


@pytest.mark.skipif(not HAS_QEMU, reason="no QEMU on this host")
async def test_the_qemu_of_this_host() -> None:
    qemu = await find_qemu()
    assert qemu.version >= (7, 2, 0)
    assert qemu.is_dynamic
    assert len(qemu.build_id) >= 40
    assert qemu.default_machine_type == max(
        qemu.machine_types, key=lambda name: [int(n) for n in name.removeprefix("pc-q35-").split(".")]
    )
    assert {"virtio-net-pci", "virtio-blk-pci", "pcie-root-port"} <= qemu.devices
    assert "tcg" in qemu.accelerators
    assert qemu.migration_globals


@pytest.mark.usefixtures("dynamic")
async def test_machine_types_are_sorted_by_number(tmp_path: Path) -> None:
    qemu = await find_qemu(str(fake_qemu(tmp_path, "10.1.0")))
    assert qemu.machine_types == ("pc-q35-10.1", "pc-q35-9.2", "pc-q35-8.0")
    assert qemu.version_text == "10.1.0"
    assert qemu.devices == {"VGA", "e1000e"}
    assert qemu.accelerators == {"tcg", "kvm"}
    assert qemu.has_user_network
    assert qemu.migration_globals == ("migration.announce-rounds=0", "migration.x-max-bandwidth=1099511627776")


@pytest.mark.usefixtures("dynamic")
@pytest.mark.parametrize(
    ("version", "complaint"),
    [("6.2.0", "QEMU 6.2.0, which is too old"), ("7.1.9 (Debian)", "too old"), ("of something", "does not say")],
)
async def test_what_is_too_old_or_odd_is_refused(version: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=complaint):
        await find_qemu(str(fake_qemu(tmp_path, version)))


async def test_a_missing_qemu_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnsupportedError, match=r"no qemu-nowhere on this host\. .*apt-get install"):
        await find_qemu("qemu-nowhere")


async def test_a_script_is_no_qemu(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not a 64-bit program"):
        await find_qemu(str(fake_qemu(tmp_path, "8.0.0")))


async def test_a_static_program_is_refused(tmp_path: Path) -> None:
    """Nothing can be preloaded into it. The program: an ELF header and no program headers at all."""
    path = tmp_path / "static"
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    path.write_bytes(bytes(header))
    path.chmod(0o755)
    with pytest.raises(UnsupportedError, match="is a static program"):
        await find_qemu(str(path))


def test_a_program_names_its_loader() -> None:
    elf = read_elf(Path("/bin/sh").resolve())
    assert elf.interpreter is not None
    assert Path(elf.interpreter).exists()


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n" * 20], ids=["empty", "cut", "script"])
def test_what_is_not_elf_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UnsupportedError):
        read_elf(path)


@pytest.mark.parametrize("cut", [64, 100, 500, 2000])
def test_a_cut_program_is_read_as_far_as_it_goes(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(Path("/bin/sh").resolve().read_bytes()[:cut])
    read_elf(path)


def test_quirks_follow_the_version() -> None:
    assert not with_version(7, 2, 22).incoming_failure_is_survived
    assert with_version(9, 1, 0).incoming_failure_is_survived
    amd = dataclasses.replace(QEMU, host_vendor="AuthenticAMD")
    assert "arch-capabilities=off" in amd.kvm_cpu
    assert "arch-capabilities" not in dataclasses.replace(amd, version=(10, 1, 0)).kvm_cpu
    assert "arch-capabilities" not in QEMU.kvm_cpu
