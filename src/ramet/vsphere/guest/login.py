"""A guest's user, as a client claims to be one: what runs in the guest runs as that user, or not at all.

    guest = guest_of(world, vm_reference, auth)            # InvalidGuestLogin for what cannot be a login
    output = await guest.run(scripts.LIST, path)           # the fault that says why not
    await guest.check()

The guest decides who its users are. A password is on its way to it for as long as one command begins, and is kept
nowhere; log and audit never see it.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ramet.errors import DeadlineError, GuestError, RametError, StateError
from ramet.model.requests import Exec
from ramet.model.views import ExecResult
from ramet.vsphere import ids
from ramet.vsphere.core.faults import words_of
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.guest import scripts
from ramet.vsphere.machine.refusals import refusal
from ramet.vsphere.types import vim, vmodl

if TYPE_CHECKING:
    from ramet.host.service import Host

TIMEOUT_S = 60.0
MAX_OUTPUT = 8 << 20
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,254}\$?")
_MAX_PASSWORD = 1024


@dataclass(frozen=True, slots=True)
class Guest:
    """One user of one guest. `repr` tells no password."""

    mo: Mo
    vm_id: str
    user: str
    password: _Secret

    @property
    def host(self) -> Host:
        return self.mo.world.host

    async def check(self) -> None:
        """Whether it is a user of the guest's. InvalidGuestLogin."""
        await self.run(scripts.CHECK)

    async def run(self, script: str, *arguments: str, path: str = "", stdin: bytes = b"") -> bytes:
        """Its output. `path` is what the faults name."""
        return await self._run(self.request(script, *arguments, stdin=stdin), path)

    async def run_as_root(self, script: str, *arguments: str, path: str = "") -> bytes:
        """What the agent itself has to do for the user, who was let in before."""
        argv = ("/bin/sh", "-c", scripts.ENVIRON + script, "sh", *arguments)
        return await self._run(Exec(argv=argv, timeout_s=TIMEOUT_S), path)

    async def _run(self, request: Exec, path: str) -> bytes:
        try:
            result = await self.host.exec_in_vm(self.vm_id, request)
        except (RametError, OSError) as exc:
            raise unreachable(self.mo, exc) from exc
        return told(result, path)

    async def spawn(self, script: str, *arguments: str) -> int:
        """Start it, and do not wait; its process id in the guest."""
        try:
            return await self.host.spawn_in_vm(self.vm_id, self.request(script, *arguments))
        except (RametError, OSError) as exc:
            raise unreachable(self.mo, exc) from exc

    def request(self, script: str, *arguments: str, stdin: bytes = b"") -> Exec:
        argv = ("/bin/sh", "-c", scripts.LOGIN, "sh", self.user, "/bin/sh", "-c", script, "sh", *arguments)
        given = self.password.text.encode() + b"\n" + stdin
        return Exec(argv=argv, stdin_base64=base64.b64encode(given).decode(), timeout_s=TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class _Secret:
    text: str

    def __repr__(self) -> str:
        return "…"


def guest_of(world: World, reference: Any, auth: Any) -> Guest:
    mo = world.find(reference._moId, None, reference)
    vm_id = ids.vm_id(mo.moid)
    if vm_id is None:
        raise vmodl.fault.InvalidArgument(invalidProperty="vm", msg=f"{mo.moid} is no VM.")
    if not isinstance(auth, vim.vm.guest.NamePasswordAuthentication):
        raise vim.fault.OperationNotSupportedByGuest(
            msg=f"{type(auth)._wsdlName} is not supported: give the name and the password of a user of the guest."
        )
    if auth.interactiveSession:
        raise vim.fault.OperationNotSupportedByGuest(msg="Interactive sessions are not supported.")
    name, password = auth.username or "", auth.password or ""
    if not _USER.fullmatch(name) or len(password) > _MAX_PASSWORD or any(c in password for c in "\n\r\0"):
        raise invalid_login(name)
    return Guest(mo, vm_id, name, _Secret(password))


def invalid_login(name: str) -> Exception:
    fault: Exception = vim.fault.InvalidGuestLogin(msg=f"The guest does not let {name[:64]!r} in with this password.")
    return fault


def unreachable(mo: Mo, exc: BaseException) -> Any:
    """A guest that is off, or whose agent does not answer, or may run no programs."""
    match exc:
        case StateError():
            return refusal(mo, exc, "poweredOn")
        case GuestError() if exc.fields.get("error_class") == "CommandNotFound":
            return vim.fault.OperationNotSupportedByGuest(msg=words_of(exc))
        case DeadlineError() | GuestError() | OSError():
            return vim.fault.GuestOperationsUnavailable(msg=f"The guest agent does not answer, or refuses: {exc}")
    return refusal(mo, exc)


def told(result: ExecResult, path: str = "") -> bytes:
    """What a script printed, or the fault that says what its error output says."""
    output = base64.b64decode(result.stdout_base64)
    if result.exit_code == 0:
        return output[:MAX_OUTPUT]
    said = base64.b64decode(result.stderr_base64)[-2000:].decode(errors="replace")
    words = "".join(c if c.isprintable() else " " for c in said).strip()
    if result.exit_code in (scripts.REFUSED, scripts.UNABLE) and "ramet: " in words:
        return _refused(result.exit_code, words.rpartition("ramet: ")[2])
    raise fault_for(words or f"exit status {result.exit_code}", path)


def _refused(exit_code: int, why: str) -> bytes:
    if exit_code == scripts.UNABLE:
        raise vim.fault.OperationNotSupportedByGuest(msg=f"The guest cannot do it: {why}.")
    raise vim.fault.InvalidGuestLogin(msg="The guest does not let this user in with this password.")


def fault_for(words: str, path: str) -> Any:
    """By the words of the C library, which all of its programs use."""
    for phrase, kind in _FAULTS:
        if phrase in words:
            named = {"file": path} if issubclass(kind, vim.fault.FileFault) else {}
            return kind(**named, msg=f"The guest says: {words[:500]}")
    return vim.fault.FileFault(file=path, msg=f"The guest says: {words[:500]}")


_FAULTS = (
    ("No such file or directory", vim.fault.FileNotFound),
    ("Permission denied", vim.fault.GuestPermissionDenied),
    ("Operation not permitted", vim.fault.GuestPermissionDenied),
    ("Read-only file system", vim.fault.CannotAccessFile),
    ("File exists", vim.fault.FileAlreadyExists),
    ("not empty", vim.fault.DirectoryNotEmpty),
    ("Not a directory", vim.fault.NotADirectory),
    ("Is a directory", vim.fault.NotAFile),
    ("Not a regular file", vim.fault.NotAFile),
    ("No space left", vim.fault.CannotAccessFile),
)
