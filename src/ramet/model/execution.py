"""Commands in guests that are followed while they run: what is asked, and what is told line by line."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ramet.model.base import Model
from ramet.model.requests import Exec

NO_LIMIT_S = 86400.0 * 30


class FollowExec(Exec):
    """A command whose output comes while it runs. `stdin_base64` is handed to it at once."""

    timeout_s: float = Field(default=NO_LIMIT_S, gt=0, le=NO_LIMIT_S)
    """Then it is killed."""
    stdin: bool = False
    """Standard input follows, piece by piece; else it ends after `stdin_base64`."""


class ExecEvent(Model):
    """One line of the answer. `started` is the first; `exited` or `error` the last, unless the connection broke off."""

    kind: Literal["started", "stdout", "stderr", "lost", "alive", "exited", "error"]
    id: str | None = None
    """Of `started`: what input and signals are addressed to."""
    data_base64: str | None = None
    """Of `stdout` and `stderr`."""
    lost_bytes: int | None = None
    """Of `lost`: so much output was dropped, because nobody read it in time."""
    exit_code: int | None = None
    """Of `exited`: 128 and the signal's number when a signal ended it."""
    signal: int | None = None
    error: dict[str, Any] | None = None
    """Of `error`, as in every other answer."""
