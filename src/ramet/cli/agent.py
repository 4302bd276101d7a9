"""Waiting until a guest has come up so far that its agent answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ramet.errors import DeadlineError, NotFoundError, RametError, StateError
from ramet.model.requests import Exec

if TYPE_CHECKING:
    from ramet.api.client import Client

ONE_TRY_S = 5.0
PAUSE_S = 0.05


def wait_for_agent(
    client: Client,
    ref: str,
    timeout_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Return when a command has run in the guest. DeadlineError after `timeout_s`; a VM that is off raises at once."""
    deadline = clock() + timeout_s
    while True:
        try:
            client.exec_in_vm(ref, Exec(argv=("/bin/true",), timeout_s=ONE_TRY_S))
        except (NotFoundError, StateError):
            raise
        except RametError as error:
            if clock() > deadline:
                raise DeadlineError(
                    f"{ref} did not answer within {timeout_s:.0f} s: {error.message}",
                    hint=f"Look at its console: ramet vm console {ref} --log.",
                ) from error
            pause(PAUSE_S)
        else:
            return
