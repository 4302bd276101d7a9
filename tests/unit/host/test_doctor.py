"""The checks of this host: each judged on facts, and one look at the real thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ramet.host import doctor
from ramet.host.doctor_facts import TOOLS, Facts, gather
from ramet.model.units import GIB, MIB

GOOD = Facts(
    kernel="6.1.0-18-amd64",
    arch="x86_64",
    qemu_path="/usr/bin/qemu-system-x86_64",
    qemu_version="7.2.22",
    kvm_present=True,
    kvm_opens=True,
    accelerator="kvm",
    guest_kernels=("/boot/vmlinuz-6.1.0-18-cloud-amd64",),
    qemu_user=True,
    capabilities=(1 << 41) - 1,
    tun_opens=True,
    tun_opens_to_all=True,
    tools={program: f"/usr/bin/{program}" for program in TOOLS},
    uefi="/usr/share/OVMF/OVMF_CODE_4M.fd",
    state_dir="/var/lib/ramet",
    disk_free_bytes=100 * GIB,
    memory_available_bytes=16 * GIB,
    memory_total_bytes=24 * GIB,
    overcommit=0,
    cgroup="v2",
    cgroup_writable=True,
    ksm_run=0,
    max_map_count=65530,
    memfd_noexec=0,
    open_files_max=1 << 20,
)


def test_a_good_host_has_nothing_to_remedy() -> None:
    assert {check.status for check in doctor.checks(GOOD)} == {"ok"}
    assert all(check.remedy is None and check.found for check in doctor.checks(GOOD))


@pytest.mark.parametrize(
    ("change", "name", "status", "says"),
    [
        ({"arch": "aarch64"}, "architecture", "missing", "x86-64"),
        ({"kernel": "5.8.9"}, "kernel", "missing", "5.9"),
        ({"kernel": "10.2"}, "kernel", "ok", ""),
        ({"kernel": ""}, "kernel", "missing", "newer"),
        ({"qemu_path": None}, "QEMU", "missing", "apt install qemu-system-x86"),
        ({"qemu_version": "7.1.9"}, "QEMU", "missing", "7.2"),
        ({"qemu_version": "10.0.3"}, "QEMU", "ok", ""),
        ({"qemu_version": "11.0.0"}, "QEMU", "warning", "--selftest"),
        ({"qemu_version": None}, "QEMU", "missing", "7.2"),
        ({"qemu_static": True}, "QEMU", "missing", "preloaded"),
        ({"library_problem": "The fork library was not built."}, "fork library", "missing", "gcc"),
        ({"preload_error": "wrong ELF class"}, "fork library", "missing", "Build"),
        ({"accelerator": "tcg", "accelerator_reason": "the guest hung"}, "accelerator", "warning", "software"),
        ({"accelerator": None}, "accelerator", "warning", "daemon"),
        ({"accelerator": "tcg", "kvm_opens": False}, "accelerator", "warning", "group kvm"),
        ({"accelerator": "tcg", "kvm_opens": False, "kvm_present": False}, "accelerator", "warning", "kvm_intel"),
        ({"guest_kernels": ()}, "kernel for guests", "warning", "linux-image-cloud-amd64"),
        ({"qemu_user": False}, "QEMU user", "warning", "useradd"),
        ({"qemu_user": False, "uid": 1000}, "QEMU user", "ok", ""),
        ({"capabilities": 0}, "privileges", "warning", "--nic user"),
        ({"capabilities": 1 << 12}, "privileges", "warning", "root"),
        ({"tun_opens": False}, "privileges", "warning", "root"),
        ({"tun_opens_to_all": False}, "privileges", "warning", "chmod 0666 /dev/net/tun"),
        ({"uefi": None}, "UEFI firmware", "warning", "ovmf"),
        ({"state_dir": "/" + "x" * 100}, "state directory", "missing", "--state"),
        ({"closed_parent": "/root"}, "state directory", "missing", "chmod o+x /root"),
        ({"disk_free_bytes": 100 * MIB}, "disk space", "missing", "room"),
        ({"disk_free_bytes": 2 * GIB}, "disk space", "warning", "--state"),
        ({"disk_free_bytes": None}, "disk space", "warning", "asked"),
        ({"memory_available_bytes": 100 * MIB}, "memory", "missing", "little"),
        ({"memory_available_bytes": 1 * GIB}, "memory", "warning", "few"),
        ({"memory_total_bytes": None}, "memory", "warning", "meminfo"),
        ({"overcommit": 2}, "overcommit", "missing", "sysctl"),
        ({"max_map_count": 500}, "mappings", "missing", "65530"),
        ({"max_map_count": None}, "mappings", "ok", ""),
        ({"memfd_noexec": 2}, "memfd", "missing", "sysctl"),
        ({"open_files_max": 1024}, "open files", "warning", "ulimit"),
        ({"open_files_max": None}, "open files", "ok", ""),
        ({"cgroup": None}, "cgroups", "warning", "limits"),
        ({"cgroup_writable": False}, "cgroups", "warning", "root"),
        ({"ksm_run": None}, "page merging (KSM)", "ok", ""),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(change: dict[str, object], name: str, status: str, says: str) -> None:
    facts = replace(GOOD, **change)  # type: ignore[arg-type]
    (check,) = [check for check in doctor.checks(facts) if check.name == name]
    assert check.status == status
    assert says in (check.remedy or "")
    assert (check.remedy is None) == (status == "ok")
    assert {other.status for other in doctor.checks(facts) if other.name != name} == {"ok"}


def test_the_tcg_verdict_says_why() -> None:
    facts = replace(GOOD, accelerator="tcg", accelerator_reason="the guest did not boot within 5 s")
    assert "did not boot within 5 s" in doctor.check_accelerator(facts).found


@pytest.mark.parametrize("program", TOOLS)
def test_a_program_that_is_not_there(program: str) -> None:
    package, _, needed = TOOLS[program]
    facts = replace(GOOD, tools={**GOOD.tools, program: None})
    (check,) = [check for check in doctor.checks(facts) if check.status != "ok"]
    assert check.name == program
    assert check.status == ("missing" if needed else "warning")
    assert f"apt install {package}" in (check.remedy or "")


def test_state_directory_that_just_fits() -> None:
    room = doctor.SOCKET_PATH_MAX - len("/" + doctor.LONGEST_SOCKET)
    assert doctor.check_state_dir(replace(GOOD, state_dir="/" + "x" * (room - 1))).status == "ok"
    assert doctor.check_state_dir(replace(GOOD, state_dir="/" + "x" * room)).status == "missing"


def test_this_host_can_be_looked_at(tmp_path: Path) -> None:
    facts = gather(tmp_path / "not" / "there", accelerator="tcg", accelerator_reason="because")
    assert facts.kernel
    assert facts.disk_free_bytes
    assert facts.memory_total_bytes is not None
    assert facts.memory_available_bytes is not None
    assert facts.memory_available_bytes <= facts.memory_total_bytes
    assert set(facts.tools) == set(TOOLS)
    assert (facts.accelerator, facts.accelerator_reason) == ("tcg", "because")
    assert len(doctor.checks(facts)) == len(doctor.checks(GOOD))


def test_a_host_without_qemu_is_looked_at_too(tmp_path: Path) -> None:
    facts = gather(tmp_path, qemu="no-such-qemu")
    assert facts.qemu_path is None
    assert facts.qemu_version is None
    assert doctor.check_qemu(facts).status == "missing"
