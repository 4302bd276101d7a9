"""Who failed to log in how often: a few wrong passwords in a row lock a user for a while.

    lockout = Lockout(failures=5, window_s=600, lock_s=900)
    lockout.failed("web", now) -> float | None      # Unix time until which it is locked now; None: not yet
    lockout.until("web") -> float                   # what `failed` said last; 0.0 when nothing is held against it
    lockout.succeeded("web")

Only of users that exist, so that it is bounded; in memory, as a restart is the administrator's.
"""

from __future__ import annotations


class Lockout:
    def __init__(self, failures: int, window_s: float, lock_s: float) -> None:
        self._most = failures
        self._window_s = window_s
        self._lock_s = lock_s
        self._failed: dict[str, list[float]] = {}
        self._until: dict[str, float] = {}

    def failed(self, name: str, now: float) -> float | None:
        """Count one. When it was one too many, the time until which nobody gets in by that name."""
        recent = [at for at in self._failed.get(name, ()) if at > now - self._window_s]
        recent.append(now)
        if len(recent) < self._most:
            self._failed[name] = recent
            return None
        self.succeeded(name)
        self._until[name] = now + self._lock_s
        return self._until[name]

    def until(self, name: str) -> float:
        """Unix time until which it is locked; it may be past."""
        return self._until.get(name, 0.0)

    def succeeded(self, name: str) -> None:
        """Nothing is held against it any more."""
        self._failed.pop(name, None)
        self._until.pop(name, None)
