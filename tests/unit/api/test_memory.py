"""The ledger of memory and the metrics, over the socket."""

from __future__ import annotations

import pytest

from ramet.api.client import Client
from ramet.errors import NotFoundError, UsageError
from ramet.model.host import Task
from tests.unit.api.api_kit import Served


def test_memory(client: Client, served: Served) -> None:
    view = client.memory(["web"], now=True)
    assert served.host.memory.asked == [(("web",), True)]
    assert view.rows[0].unique_bytes == 4096
    assert client.memory().total_bytes == 1 << 30
    with pytest.raises(NotFoundError):
        client.memory(["nobody"])


def test_history(client: Client, served: Served) -> None:
    found = client.memory_history("web", "day")
    assert served.host.memory.asked == [("web", "day")]
    assert found.points[0].spent_bytes == 3072
    assert client.memory_history().name == "host"
    with pytest.raises(UsageError, match="span"):
        client.memory_history(span="year")  # type: ignore[arg-type]


def test_metrics(client: Client) -> None:
    assert client.metrics().endswith("ramet_vms 1.0\n")


def test_a_task_without_memory_is_not_waited_for(client: Client) -> None:
    task = Task(kind="clone", target="a", result=[{"name": "a"}])
    assert client.clone_memory(task) is task
