import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.api import Client
from tests.unit.api.api_kit import Served


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Short: the path of a Unix socket has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="ramet-"))
    (path / "run").mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def served(state_dir: Path) -> Iterator[Served]:
    served = Served(state_dir)
    served.start()
    yield served
    served.stop()
    assert served.deaths == 0


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.settings.api_socket) as client:
        yield client
