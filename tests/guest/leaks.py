"""What a state folder may leave on the machine: see ``ramet.testing.leaks``."""

from __future__ import annotations

from ramet.testing.leaks import left_behind

__all__ = ["left_behind"]
