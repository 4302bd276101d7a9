"""Control groups: where they are found, and what is written, on trees that look like v1, v2 and hybrid hosts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ramet.hypervisor.cgroup import CONTROLLERS, CgroupHost, detect


def v1(directory: Path, *controllers: str) -> list[str]:
    lines = []
    for controller in controllers:
        (directory / controller / "ramet").mkdir(parents=True)
        (directory / controller / "ramet" / "cgroup.procs").touch()
        lines.append(f"cgroup {directory / controller} cgroup rw,relatime,{controller} 0 0")
    return lines


def v2(directory: Path, controllers: str) -> list[str]:
    for place in (directory / "unified", directory / "unified" / "ramet"):
        place.mkdir(parents=True)
        (place / "cgroup.controllers").write_text(controllers)
        (place / "cgroup.subtree_control").write_text("")
        (place / "cgroup.procs").touch()
    return [f"cgroup2 {directory / 'unified'} cgroup2 rw 0 0"]


def look(directory: Path, lines: list[str], own: str = "0::/\n") -> CgroupHost:
    (directory / "mounts").write_text("\n".join(["proc /proc proc rw 0 0", *lines]) + "\n")
    (directory / "own").write_text(own)
    return detect(mounts=directory / "mounts", own=directory / "own")


def test_v2(tmp_path: Path) -> None:
    host = look(tmp_path, v2(tmp_path, "cpuset cpu memory pids"))
    assert host.version == "v2"
    assert host.bases == dict.fromkeys(CONTROLLERS, (tmp_path / "unified" / "ramet", True))


def test_v1(tmp_path: Path) -> None:
    host = look(tmp_path, v1(tmp_path, *CONTROLLERS))
    assert host.version == "v1"
    assert host.bases["cpu"] == (tmp_path / "cpu" / "ramet", False)
    assert host.problems == ()


def test_hybrid(tmp_path: Path) -> None:
    host = look(tmp_path, [*v1(tmp_path, "cpu", "memory"), *v2(tmp_path, "pids")])
    assert host.version == "hybrid"
    assert {c: is_v2 for c, (_, is_v2) in host.bases.items()} == {"cpu": False, "memory": False, "pids": True}


def test_none(tmp_path: Path) -> None:
    host = look(tmp_path, [])
    assert (host.version, host.bases) == ("none", {})
    assert host.group("line", "vm").set_cpu_limit(50) == "cpu: control groups are not mounted"


def test_a_controller_that_is_missing_is_named(tmp_path: Path) -> None:
    host = look(tmp_path, v2(tmp_path, "memory pids"))
    assert set(host.bases) == {"memory", "pids"}
    assert host.problems[0].startswith("cpu: ")
    assert "no such controller" in host.problems[0]


def test_every_vm_weighs_the_same_and_all_of_them_as_two_tasks_a_processor(tmp_path: Path) -> None:
    host = look(tmp_path, v1(tmp_path, *CONTROLLERS))
    base = tmp_path / "cpu" / "ramet"
    groups = [host.group(lineage, vm) for lineage, vm in (("one", "a"), ("one", "b"), ("two", "c"))]
    assert [group.create() for group in groups] == [None, None, None]
    assert (base / "cpu.shares").read_text() == str(2 * (os.cpu_count() or 1) * 1024)
    assert (base / "lineage-one" / "cpu.shares").read_text() == "2048"
    assert (base / "lineage-two" / "cpu.shares").read_text() == "1024"
    assert groups[0].remove() is None
    assert (base / "lineage-one" / "cpu.shares").read_text() == "1024"


def test_lineages_weigh_as_their_vms_in_v2(tmp_path: Path) -> None:
    host = look(tmp_path, v2(tmp_path, "cpu memory pids"))
    lineage = tmp_path / "unified/ramet/lineage-one"
    fill(lineage, "cgroup.subtree_control")
    for vm in ("a", "b"):
        assert host.group("one", vm).create() is None
    assert (lineage / "cpu.weight").read_text() == "200"
    assert not (lineage.parent / "cpu.weight").exists()


def fill(directory: Path, *files: str) -> None:
    directory.mkdir(parents=True)
    for name in files:
        (directory / name).touch()


def test_limits_are_written_in_each_dialect(tmp_path: Path) -> None:
    old = look(tmp_path, v1(tmp_path, *CONTROLLERS)).group("line", "vm")
    for controller in CONTROLLERS:
        fill(tmp_path / controller / "ramet" / "lineage-line" / "vm-vm", "cgroup.procs")
    cpu = tmp_path / "cpu/ramet/lineage-line/vm-vm"
    assert old.set_cpu_limit(150) is None
    assert ((cpu / "cpu.cfs_quota_us").read_text(), (cpu / "cpu.cfs_period_us").read_text()) == ("150000", "100000")
    assert old.set_cpu_limit(None) is None
    assert (cpu / "cpu.cfs_quota_us").read_text() == "-1"
    assert old.set_lineage_memory_limit(1 << 30) is None
    assert (tmp_path / "memory/ramet/lineage-line/memory.limit_in_bytes").read_text() == str(1 << 30)

    there = tmp_path / "v2"
    there.mkdir()
    new = look(there, v2(there, "cpu memory pids")).group("line", "vm")
    fill(there / "unified/ramet/lineage-line/vm-vm", "cgroup.procs")
    (there / "unified/ramet/lineage-line/cgroup.subtree_control").touch()
    assert new.create() is None
    assert new.set_cpu_limit(50) is None
    assert (there / "unified/ramet/lineage-line/vm-vm/cpu.max").read_text() == "50000 100000"
    assert new.set_cpu_limit(None) is None
    assert (there / "unified/ramet/lineage-line/vm-vm/cpu.max").read_text() == "max 100000"
    assert new.set_pids_limit(100) is None
    assert new.set_lineage_memory_limit(None) is None
    assert (there / "unified/ramet/lineage-line/memory.max").read_text() == "max"


def test_groups_on_this_host() -> None:
    """For real, as far as this host lets us: limits that are set are the kernel's, and nothing stays."""
    host = detect("ramet-test")
    if not host.bases:
        pytest.skip("; ".join(host.problems))
    group = host.group("line1", "vm1")
    child = subprocess.Popen(["sleep", "1000"])
    try:
        assert group.create() is None
        assert group.add(child.pid) is None
        for controller, limit in (("cpu", group.set_cpu_limit(50)), ("pids", group.set_pids_limit(100))):
            assert (limit is None) is (controller in host.bases)
        assert host.vms() == {"vm1"}
        assert "/ramet-test/lineage-line1/vm-vm1" in Path(f"/proc/{child.pid}/cgroup").read_text()
        assert "cannot be removed" in (group.remove() or "")
    finally:
        child.kill()
        child.wait()
        assert group.remove() is None
        assert host.vms() == set()
        for base, _ in dict.fromkeys(host.bases.values()):
            base.rmdir()
