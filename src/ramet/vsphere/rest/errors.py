"""Errors of the automation API: a name, messages, and the HTTP status that goes with it.

    raise ApiError("not_found", "There is no VM vm-7.")
    error_of(exc) -> ApiError or None        # from the fault of a managed object; None: a bug of ours
    body(error, style) -> what is sent
"""

from __future__ import annotations

from typing import Any

from ramet.vsphere.rest.structs import Style, Styled
from ramet.vsphere.types import vim, vmodl, wire_name

__all__ = ["ApiError", "body", "error_of"]

_STATUS = {
    "not_found": 404, "operation_not_found": 404, "unauthenticated": 401, "unauthorized": 403, "timed_out": 504,
    "service_unavailable": 503, "error": 500, "internal_server_error": 500,
}  # fmt: skip
"""Of all others it is 400."""

_FAULTS: tuple[tuple[Any, str], ...] = (
    (vim.fault.NotAuthenticated, "unauthenticated"),
    (vim.fault.InvalidLogin, "unauthenticated"),
    (vim.fault.NoPermission, "unauthorized"),
    (vmodl.fault.ManagedObjectNotFound, "not_found"),
    (vim.fault.NotFound, "not_found"),
    (vim.fault.AlreadyExists, "already_exists"),
    (vim.fault.DuplicateName, "already_exists"),
    (vim.fault.TaskInProgress, "resource_busy"),
    (vim.fault.ToolsUnavailable, "service_unavailable"),
    (vim.fault.InvalidGuestLogin, "unauthenticated"),
    (vim.fault.InvalidPowerState, "not_allowed_in_current_state"),
    (vim.fault.InvalidState, "not_allowed_in_current_state"),
    (vim.fault.InsufficientResourcesFault, "unable_to_allocate_resource"),
    (vim.fault.Timedout, "timed_out"),
    (vim.fault.FileFault, "resource_inaccessible"),
    (vim.fault.InvalidDatastore, "invalid_argument"),
    (vim.fault.InvalidName, "invalid_argument"),
    (vmodl.fault.NotSupported, "unsupported"),
    (vmodl.fault.InvalidArgument, "invalid_argument"),
    (vmodl.fault.InvalidRequest, "invalid_argument"),
    (vmodl.query.InvalidProperty, "invalid_argument"),
)


class ApiError(Exception, Styled):
    """What a caller is told. `kind` is the last word of its name: 'not_found'."""

    def __init__(self, kind: str, message: str, id: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.id = id or f"ramet.{kind}"

    @property
    def status(self) -> int:
        return _STATUS.get(self.kind, 400)

    def styled(self, style: Style) -> Any:
        return body(self, style)

    @property
    def name(self) -> str:
        return f"com.vmware.vapi.std.errors.{self.kind}"


def error_of(exc: BaseException) -> ApiError | None:
    """A fault's own sentence under the API's name for it."""
    if isinstance(exc, ApiError):
        return exc
    if not isinstance(exc, vmodl.MethodFault):
        return None
    kind = next((kind for fault, kind in _FAULTS if isinstance(exc, fault)), "error")
    if isinstance(exc, vim.fault.InvalidPowerState) and exc.requestedState and exc.requestedState == exc.existingState:
        kind = "already_in_desired_state"
    name = wire_name(type(exc))
    return ApiError(kind, exc.msg or name, f"com.vmware.api.vcenter.{name}")


def body(error: ApiError, style: Style) -> Any:
    message = {"args": [], "default_message": error.message, "id": error.id}
    if style is Style.API:
        return {"error_type": error.kind.upper(), "messages": [message]}
    if style is Style.REST:
        return {"type": error.name, "value": {"error_type": error.kind.upper(), "messages": [message]}}
    text = {"STRUCTURE": {"com.vmware.vapi.std.localizable_message": message}}
    fields = {"messages": [text], "data": {"OPTIONAL": None}, "error_type": {"OPTIONAL": error.kind.upper()}}
    return {"ERROR": {error.name: fields}}
