"""Who was forked and is not known to anybody is found by its socket, and ended."""

from __future__ import annotations

from pathlib import Path

from ramet.hypervisor.native import NativePaths
from ramet.hypervisor.rundir import RunDir
from ramet.hypervisor.stray import end_behind
from tests.unit.native.native_kit import Nursery, Process


def run_dir(folder: Path, process: Process) -> RunDir:
    folder.mkdir()
    (folder / "fork").symlink_to(process.control)
    return RunDir(folder)


def test_a_fork_that_nobody_heard_of_is_ended_and_its_source_is_not(nursery: Nursery, tmp_path: Path) -> None:
    source = nursery.launch()
    clone = nursery.fork(source)
    place = run_dir(tmp_path / "clone", clone)
    assert end_behind(place, nursery.paths) == clone.pid
    assert not Path(f"/proc/{clone.pid}").exists()
    assert end_behind(place, nursery.paths) is None
    assert source.number("get 0") == 0


def test_nobody_is_ended_where_nobody_serves(nursery: Nursery, tmp_path: Path) -> None:
    assert end_behind(RunDir(tmp_path / "none"), nursery.paths) is None


def test_a_process_without_the_library_is_not_ended(nursery: Nursery, tmp_path: Path) -> None:
    """What answers is not to be believed: it may name another's number."""
    source = nursery.launch()
    place = run_dir(tmp_path / "source", source)
    elsewhere = NativePaths(tmp_path / "other" / "vmfork.so", tmp_path / "other" / "vmfork-holder")
    assert end_behind(place, elsewhere) is None
    assert source.number("get 0") == 0
