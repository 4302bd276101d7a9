"""The kernel's page merging, on a made-up sysfs and proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramet.memory.ksm import Ksm

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
KNOBS = {"run": 0, "pages_to_scan": 100, "sleep_millisecs": 20}


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Folders `ksm` and `proc`, as of Linux 6.18."""
    (tmp_path / "ksm").mkdir()
    numbers = {"pages_shared": 10, "pages_sharing": 30, "general_profit": 100_000, "full_scans": 4}
    for name, value in (KNOBS | numbers).items():
        (tmp_path / "ksm" / name).write_text(f"{value}\n")
    process(tmp_path, 7, "ksmd", parent=2, utime=TICKS, stime=2 * TICKS)
    process(tmp_path, 8, "bash", parent=1)
    return tmp_path


def process(kernel: Path, pid: int, name: str, parent: int, utime: int = 0, stime: int = 0) -> Path:
    directory = kernel / "proc" / str(pid)
    directory.mkdir(parents=True)
    before = " ".join("0" * 9)
    (directory / "stat").write_text(f"{pid} ({name}) S {parent} {before} {utime} {stime} 0 0\n")
    return directory


def ksm(kernel: Path) -> Ksm:
    return Ksm(kernel / "ksm", kernel / "proc")


def test_counters_are_bytes_and_seconds(kernel: Path) -> None:
    seen = ksm(kernel).counters()
    assert (seen.shared_bytes, seen.sharing_bytes, seen.profit_bytes) == (10 * PAGE, 30 * PAGE, 100_000)
    assert (seen.running, seen.full_scans, seen.cpu_s) == (False, 4, 3.0)


def test_an_older_kernel_tells_less(kernel: Path) -> None:
    (kernel / "ksm" / "general_profit").unlink()
    assert ksm(kernel).counters().profit_bytes is None


def test_a_program_that_calls_itself_ksmd_is_not_the_kernels(kernel: Path) -> None:
    (kernel / "proc" / "7" / "stat").unlink()
    process(kernel, 9, "ksmd", parent=8, utime=TICKS)
    assert ksm(kernel).cpu_s() is None


def test_a_pace_is_set_before_it_runs_and_can_be_put_back(kernel: Path) -> None:
    here = ksm(kernel)
    before = here.knobs()
    assert before == KNOBS
    here.turn({"run": 1, "pages_to_scan": 500})
    assert here.is_running
    assert here.knobs() == {**KNOBS, "run": 1, "pages_to_scan": 500}
    here.turn(before)
    assert here.knobs() == KNOBS


def test_a_host_without_it_says_so(tmp_path: Path) -> None:
    here = ksm(tmp_path)
    assert not here.exists
    assert not here.is_running
    assert here.problem == "This host's kernel has no page merging (CONFIG_KSM)"
    with pytest.raises(OSError, match="run"):
        here.counters()


def test_whoever_may_not_switch_it_is_told(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ksm(kernel).problem is None
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "only root" in (ksm(kernel).problem or "")


def test_merged_memory_is_what_is_mapped_where_the_kernel_counts_that(kernel: Path) -> None:
    qemu = process(kernel, 20, "qemu", parent=1)
    (qemu / "smaps_rollup").write_text("Rss:  9 kB\nKSM:                 512 kB\nLocked: 0 kB\n")
    (qemu / "ksm_merging_pages").write_text("3\n")
    (qemu / "ksm_stat").write_text("ksm_rmap_items 5\nksm_process_profit 4096\nksm_merge_any: no\n")
    here = ksm(kernel)
    assert here.merged_bytes(20) == 512 * 1024
    assert here.merged_quickly_bytes(20) == 3 * PAGE
    assert here.profit_bytes(20) == 4096


def test_before_linux_6_7_it_is_what_ksmd_counted(kernel: Path) -> None:
    qemu = process(kernel, 20, "qemu", parent=1)
    (qemu / "smaps_rollup").write_text("Rss:  9 kB\n")
    assert ksm(kernel).merged_bytes(20) == 0
    (qemu / "ksm_merging_pages").write_text("3\n")
    assert ksm(kernel).merged_bytes(20) == 3 * PAGE
    assert ksm(kernel).profit_bytes(20) is None
    with pytest.raises(OSError, match="smaps_rollup"):
        ksm(kernel).merged_bytes(21)
