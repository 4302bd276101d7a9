"""One tree of errors; whose fault it is decides the class.

    RametError
    ├── UsageError          the caller's input is wrong                      (HTTP 422, exit 2)
    ├── NotFoundError       the caller named something that does not exist   (404)
    ├── ConflictError       the name or resource is taken                    (409)
    ├── StateError          the VM is in the wrong state for this            (409)
    ├── BusyError           another operation holds the VM                   (409)
    ├── UnsupportedError    refused by design or by this host's software     (422)
    ├── PrivilegeError      the daemon lacks a privilege                     (403)
    ├── CapacityError       memory or disk is short                          (507)
    ├── StunTooLongError    the forecast or the measured stun passes a bound (409)
    ├── TaskCancelledError     the user cancelled the task                      (409)
    ├── PeerError           a program or guest we talk to broke its contract (502)
    │   ├── QemuError       QEMU refused a command, or died
    │   ├── ForkError       the library inside QEMU refused, or failed, to fork
    │   ├── GuestError      the guest agent, or the guest, refused or answered nonsense
    │   └── ToolError       a helper program (qemu-img, dnsmasq, …) failed
    ├── DeadlineError       a bounded wait ran out                           (504)
    ├── DamagedError        something on disk is not what was written        (500)
    └── InternalError       a bug of ours                                    (500)

Every error carries one sentence that says what is wrong (`message`) and, where there is one, a second
that says what to do (`hint`). Layers below ``machine`` let OSError pass; ``raise … from exc`` wraps once
per layer. HTTP status and exit code are looked up at the edge, from `http_status` and `exit_code`.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class RametError(Exception):
    """Root of the tree. `fields` are for programs: small, JSON-serialisable, named after the model."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def as_dict(self) -> dict[str, Any]:
        """The error on the wire: ``{"code", "message", "hint", "fields"}``."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "fields": self.fields}


class UsageError(RametError):
    code = "usage"
    http_status = 422
    exit_code = 2


class NotFoundError(RametError):
    code = "not-found"
    http_status = 404


class ConflictError(RametError):
    code = "conflict"
    http_status = 409


class StateError(RametError):
    """The VM's state does not allow the operation. Fields: `state`, `operation`."""

    code = "state"
    http_status = 409


class BusyError(RametError):
    """Another operation holds the VM. Fields: `operation`, the one that holds it."""

    code = "busy"
    http_status = 409


class UnsupportedError(RametError):
    code = "unsupported"
    http_status = 422


class PrivilegeError(RametError):
    code = "privilege"
    http_status = 403


class CapacityError(RametError):
    """Where a host's memory is short, fields: `needed_bytes`, `available_bytes`, `promised_bytes` (to VMs that run),
    `reserve_bytes` and `missing_bytes`."""

    code = "capacity"
    http_status = 507


class StunTooLongError(RametError):
    """Fields: `forecast_ms`, `bound_ms`."""

    code = "stun-too-long"
    http_status = 409


class TaskCancelledError(RametError):
    code = "cancelled"
    http_status = 409


class PeerError(RametError):
    code = "peer"
    http_status = 502


class QemuError(PeerError):
    code = "qemu"


class ForkError(PeerError):
    code = "fork"


class GuestError(PeerError):
    code = "guest"


class ToolError(PeerError):
    code = "tool"


class DeadlineError(RametError):
    code = "deadline"
    http_status = 504


class DamagedError(RametError):
    code = "damaged"


class InternalError(RametError):
    code = "internal"


_FULL = (errno.ENOSPC, errno.EDQUOT)
_SPENT = (errno.ENOMEM, errno.EAGAIN)
_FILES = (errno.EMFILE, errno.ENFILE)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def from_os_error(exc: OSError) -> RametError:
    """What the kernel refused, in the tree's words: below ``machine`` it passes as OSError, at the edge it is this."""
    where = f" ({exc.filename})" if isinstance(exc.filename, str) else ""
    words = (exc.strerror or str(exc) or type(exc).__name__).rstrip(".")
    if isinstance(exc, TimeoutError):
        return DeadlineError("It was not done in time.", hint="Try again; 'ramet task ls' shows what else runs.")
    if exc.errno is None:  # no kernel said this
        return InternalError(
            "Something went wrong inside Ramet.", hint="The daemon's log has the details; please report them."
        )
    if exc.errno in _FULL:
        return CapacityError(f"The disk is full{where}.", hint="Make room there and try again.")
    if exc.errno in _SPENT:
        return CapacityError(
            f"The host has no memory or no process to spare: {words}{where}.", hint="End something and try again."
        )
    if exc.errno in _FILES:
        return CapacityError(f"{words}{where}.", hint="'ramet doctor' says how to raise the limit.")
    if exc.errno in _FORBIDDEN:
        return PrivilegeError(f"The host refused it: {words}{where}.", hint="'ramet doctor' says what is missing.")
    return ToolError(f"The host refused it: {words}{where}.", hint="Try again; 'ramet doctor' looks at this host.")


def _subclasses(cls: type[RametError]) -> list[type[RametError]]:
    return [cls, *(deep for sub in cls.__subclasses__() for deep in _subclasses(sub))]


def from_dict(data: dict[str, Any]) -> RametError:
    """The inverse of `RametError.as_dict`, for the client's side of the wire."""
    by_code: dict[str, type[RametError]] = {}
    for known in _subclasses(RametError):  # bases first: a room's own kind of QemuError arrives as a QemuError
        by_code.setdefault(known.code, known)
    cls = by_code.get(str(data.get("code")), RametError)
    fields = data.get("fields")
    return cls(
        str(data.get("message", "unknown error")),
        hint=data.get("hint"),
        **(fields if isinstance(fields, dict) else {}),
    )
