"""What the command modules ask of a session."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol


class EventStream(Protocol):
    async def next(self, timeout_s: float | None = None) -> dict[str, Any] | None: ...


class Executor(Protocol):
    """Implemented by `QmpSession`; the modules `qmp_*` are mixed into it."""

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, timeout_s: float = 30.0
    ) -> Any: ...

    async def execute_with_fd(
        self, fd: int, command: str, arguments: Mapping[str, Any] | None = None, timeout_s: float = 30.0
    ) -> Any: ...

    def events(self, *names: str) -> AbstractContextManager[EventStream]: ...
