"""The daemon's log: tracebacks, and no values of variables in them."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import structlog
from pydantic import ValidationError

from ramet.host.log import configure
from ramet.host.settings import Settings
from ramet.model.access import SetPassword


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("log_format", ["auto", "console", "json"])
@pytest.mark.parametrize("who", ["structlog", "logging"])
def test_a_traceback_names_no_values(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log_format: Literal["auto", "console", "json"],
    who: str,
) -> None:
    monkeypatch.setattr(sys, "stderr", out := Terminal())
    configure(Settings(state_dir=tmp_path, log_format=log_format))
    log = structlog.stdlib.get_logger("ramet.x") if who == "structlog" else logging.getLogger("uvicorn.error")
    given = "correct" + " horse"
    try:
        verify(given)
    except ZeroDivisionError:
        log.exception("a login failed by a bug of ours")
    said = out.getvalue()
    assert "ZeroDivisionError" in said
    assert "verify" in said  # the traceback is there
    assert "horse" not in said
    if log_format == "json":
        assert json.loads(said)["event"] == "a login failed by a bug of ours"


def verify(password: str) -> float:
    return len(password) / 0


def test_what_is_wrong_with_a_password_is_told_without_it() -> None:
    with pytest.raises(ValidationError) as caught:
        SetPassword.model_validate({"password": "hush"})
    assert "8 to 256" in str(caught.value)
    assert "hush" not in str(caught.value)
