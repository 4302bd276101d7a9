"""What the parts of the client share: a request for a model, and a request for a list of them."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote as quote_text

from ramet.api.wire import Wire
from ramet.model.base import Model

M = TypeVar("M", bound=Model)


def quote(text: str) -> str:
    """For one part of a path."""
    return quote_text(text, safe="")


class Calls:
    """`wire` is closed by whoever made this."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def _call(
        self,
        model: type[M],
        method: str,
        path: str,
        body: Model | dict[str, Any] | None = None,
        *,
        query: dict[str, Any] | None = None,
        wait_s: float = 0.0,
    ) -> M:
        data = body.model_dump(mode="json") if isinstance(body, Model) else body
        return model.model_validate(self._wire.json(method, path, query, data, wait_s))

    def _list(self, model: type[M], path: str, query: dict[str, Any] | None = None) -> list[M]:
        return [model.model_validate(item) for item in self._wire.json("GET", path, query)]
