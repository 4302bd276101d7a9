"""`ramet bench` as a user types it: one quick case, with every way of doing it by hand; nothing of it is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.bench.cases.ground import BARE, BOOT, RAMET, SAVEVM, TEMPLATE
from ramet.hypervisor.accelerator import CACHE_NAME
from ramet.testing.images import micro_image
from tests.guest.leaks import left_behind

RUN_S = 240.0


@pytest.fixture
async def environment(state_dir: Path, folder: Path) -> dict[str, str]:
    """The micro guest that is built already, and a temporary folder whose contents we can look at."""
    kept = Path(__file__).parents[2] / ".state" / "micro"
    kept.mkdir(parents=True, exist_ok=True)
    await micro_image(kept)
    cache = folder / "cache" / "ramet" / "bench"
    cache.mkdir(parents=True)
    (cache / "micro").symlink_to(kept)
    if (state_dir / CACHE_NAME).exists():
        shutil.copy(state_dir / CACHE_NAME, cache)
    (folder / "tmp").mkdir(mode=0o755)
    folder.chmod(0o755)
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}


@pytest.fixture
def nothing_left(folder: Path) -> Iterator[None]:
    yield
    assert list((folder / "tmp").iterdir()) == []
    assert left_behind(folder / "tmp") == []


@pytest.mark.timeout(RUN_S + 30)
def test_a_quick_case(environment: dict[str, str], nothing_left: None) -> None:
    argv = [sys.executable, "-P", "-m", "ramet.cli", "bench", "frozen", "--quick", "--json"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    report = json.loads(done.stdout)
    (case,) = report["cases"]
    ways = {what.split(":")[0] for what in case["series"]}
    assert ways == {RAMET, BARE, TEMPLATE, SAVEVM, BOOT}
    assert all(series["median"] > 0 for series in case["series"].values())
    assert [target["limit"] for target in case["targets"]] == [1.0]
    assert report["facts"]["cores"] >= 1
