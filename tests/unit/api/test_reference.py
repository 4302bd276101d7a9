from pathlib import Path
from typing import Any

from tools.openapi import generated

from ramet.api import Client
from ramet.api.app import openapi
from ramet.api.contract import Access, Host

ROOT = Path(__file__).parents[3]


def operations() -> list[dict[str, Any]]:
    return [operation for path in openapi()["paths"].values() for operation in path.values()]


def test_the_written_reference_is_not_stale() -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in generated().items() if path.read_text() != text]
    assert not stale, "run: python tools/openapi.py"


def test_every_operation_says_what_it_needs_and_does() -> None:
    for operation in operations():
        assert operation["summary"], operation["operationId"]
        assert operation["description"], operation["operationId"]
        assert operation["tags"], operation["operationId"]


def test_every_operation_has_a_method_of_the_client_and_is_named_as_the_hosts() -> None:
    ids = {operation["operationId"] for operation in operations()}
    assert len(ids) == len(operations())
    elsewhere = {"list_events": "events"}
    assert {name for name in ids if not hasattr(Client, elsewhere.get(name, name))} == set()
    asked = {name for name in vars(Host) if not name.startswith("_")} - {"tasks", "events", "sharing", "access"}
    streams, same_route = {"open_stream"}, {"forecast_clone"}
    own = {"list_tasks", "get_task", "cancel_task", "list_events", "memory_history", "page_sharing", "set_page_sharing"}
    access = {name for name in vars(Access) if not name.startswith("_")}
    assert asked - streams - same_route == ids - own - access
    assert access <= ids
