"""Ramet's errors in the words of the API.

    fault_of(exc) -> MethodFault or None          # None: a bug of ours
    fault(vim.fault.DuplicateName, "…", name=…)   # with `msg` set
    words_of(exc) -> str                          # an error's sentence and hint, without commands of ours

A hint is for who sits at Ramet's own command line: it may name a command, or an option. Who speaks the API has neither.
"""

from __future__ import annotations

import re
from typing import Any

from ramet import errors
from ramet.vsphere.types import Support, vim, vmodl

_COMMAND = re.compile(r"(?<![\w-])--[a-z]|(?<!\w)ramet [a-z]")
_SENTENCE = re.compile(r"(?<=[.!?]) ")
_CLAUSE = re.compile(r", (?=or |and )|[;:] ")
_HARD = "stop --hard"
"""An operation's name in messages of the machine's states."""


def fault(kind: Any, message: str, **fields: Any) -> Exception:
    made: Exception = kind(msg=message, **fields)
    return made


def fault_of(exc: BaseException) -> Any:
    """The fault that says what an error says, with its sentence and its hint as the message."""
    if isinstance(exc, vmodl.MethodFault):
        if not exc.msg:
            exc.msg = type(exc)._wsdlName
        return exc
    if isinstance(exc, OSError):
        exc = errors.from_os_error(exc)
        if isinstance(exc, errors.InternalError):
            return None
    if not isinstance(exc, errors.RametError) or isinstance(exc, errors.InternalError):
        return None
    return _translate(exc)


def words_of(exc: BaseException) -> str:
    """Of a RametError; of others it is what they say."""
    if not isinstance(exc, errors.RametError):
        return str(exc)
    message = exc.message.replace(_HARD, "power off", 1)
    kept = filter(None, map(_uncommanded, _SENTENCE.split(exc.hint or "")))
    return " ".join([message, *kept])


def _uncommanded(sentence: str) -> str:
    """What stands before the part that names a command."""
    named = _COMMAND.search(sentence)
    if named is None:
        return sentence
    ends = [cut.start() for cut in _CLAUSE.finditer(sentence, 0, named.start())]
    return f"{sentence[: ends[-1]]}." if ends else ""


def _translate(exc: errors.RametError) -> Any:
    said = words_of(exc)
    match exc:
        case errors.ConflictError():
            name = exc.fields.get("name")
            if name is None:
                return vim.fault.AlreadyExists(msg=said)
            return vim.fault.DuplicateName(name=str(name), object=Support.ManagedObject("unset"), msg=said)
        case errors.NotFoundError():
            return vim.fault.NotFound(msg=said)
        case errors.BusyError():
            return vim.fault.TaskInProgress(task=vim.Task("unset"), msg=said)
        case errors.StateError():
            return vim.fault.InvalidState(msg=said)
        case errors.CapacityError():
            return vim.fault.InsufficientResourcesFault(msg=said)
        case errors.TaskCancelledError():
            return vmodl.fault.RequestCanceled(msg=said)
        case errors.UnsupportedError():
            return vmodl.fault.NotSupported(msg=said)
        case errors.UsageError():
            return vmodl.fault.InvalidArgument(msg=said)
        case errors.DeadlineError():
            return vim.fault.Timedout(msg=said)
        case errors.PrivilegeError():
            return vim.fault.NoPermission(msg=said)
        case errors.DamagedError():
            return vim.fault.FileFault(file="", msg=said)
        case errors.GuestError():
            return vim.fault.GuestOperationsFault(msg=said)
    return vmodl.fault.SystemError(reason=said, msg=said)
