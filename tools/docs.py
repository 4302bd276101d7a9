"""Write the pages of the reference that are made from the lifecycle's table and from the tree of errors.

python tools/docs.py [--check]            # --check: exit 1 when a page is not what it should be
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ramet import errors
from ramet.errors import RametError
from ramet.machine.lifecycle import TRANSITIONS, Happening, Operation
from ramet.model.machine import VmState
from ramet.vsphere.rest.operations import TABLE
from ramet.vsphere.rest.structs import Struct
from ramet.vsphere.rest.table import Operation as ApiOperation

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "reference"

_LIFECYCLE = """\
# Lifecycle of a VM

Generated from the program: `python tools/docs.py`.

| State | Meaning |
|---|---|
"""

_MEANINGS = {
    VmState.OFF: "No process runs, and there is no state but the disks.",
    VmState.STARTING: "A process is coming up, or loads a saved state.",
    VmState.RUNNING: "The guest executes.",
    VmState.PAUSED: "On; QEMU stopped the guest by itself: the disk is full or broken, or the guest's kernel panicked.",
    VmState.FROZEN: "On, and held at one instruction; a moment is kept, from which any number of clones can be made.",
    VmState.SUSPENDED: "The whole state is on disk; no process runs.",
    VmState.STOPPING: "The guest was asked to shut down.",
    VmState.READY: "On, a clone that is loaded and has not executed yet: it waits in a pool, and no list shows it.",
}

_OPERATIONS = """
## What you ask for

Each cell is the state that follows; an empty one is refused, with the remedy. Power-off and restart lose the frozen
state.

"""

_HAPPENINGS = """
## What happens by itself

"""

_ERRORS = """\
# Errors

Generated from the program: `python tools/docs.py`.

Every error is one sentence that says what is wrong and, where there is one, a second that says what to do. On the
command line they are `error:` and `hint:` on standard error. Over HTTP they are
`{"code", "message", "hint", "fields"}` with the status below. In Python they are exceptions of `ramet.errors`, the
same in the client as in the daemon. What is refused changes nothing.

| Code | Class | HTTP | Exit | Meaning |
|---|---|---|---|---|
"""

_AUTOMATION = """\
# Automation API, VI JSON and the Managed Object Browser

Generated from the program: `python tools/docs.py`.

These speak to the same objects as SOAP, with the same users, sessions and privileges, at the same port.

## Automation API

Every operation is there three times:

- below `/api`, as in the table: the body is the spec itself, the answer the value, 204 for nothing, and maps are
  objects;
- below `/rest`, the older twin: the body is `{"spec": …}`, the answer `{"value": …}`, maps are lists of
  `{"key", "value"}`, a filter is written `filter.names.1=a`, actions may be the path's last step
  (`/rest/vcenter/vm/{vm}/power/start`), and the session is at `/rest/com/vmware/cis/session`;
- as JSON-RPC 2.0 at `POST /api`, for VMware's own SDKs: service and operation by name.

`POST /api/session` with HTTP Basic returns the session's id, which further calls show in the header
`vmware-api-session-id`. Operations that take long return when they are done. Errors are
`{"error_type", "messages": [{"id", "default_message", "args"}]}`: 400 for what was asked wrongly or does not fit the
state, 401, 403, 404, 503 when the guest does not answer, and 500.

A VM made here has the image that its first disk's backing names: `[ramet] images/NAME`. What the original has and this
table has not is answered with 404 `OPERATION_NOT_FOUND`; what it has and this host cannot do, with `UNSUPPORTED`.

| Operation | REST, below `/api` | Parameters; `?` may be left out |
|---|---|---|
"""

_OTHERS = """
## VI JSON

Every object, property and method of SOAP, as JSON: `GET /sdk/vim25/{release}/{type}/{id}/{property}` and
`POST /sdk/vim25/{release}/{type}/{id}/{method}` with the parameters by name, for the releases 8.0.1.0 to 8.0.3.0.
`Login` of `SessionManager` returns the session's id in the header `vmware-api-session-id`. Data objects carry
`_typeName`, references are `{"type", "value"}`, and where anything may stand a plain value is
`{"_typeName": "string", "_value": "x"}`. Answers: 200, 204 for nothing or a property that is unset, 500 with the fault
that the method raised; 404 when what is addressed is not there, 401 without a session, 400 for a body that cannot be
read, all of them with the fault too.

## Managed Object Browser

`/mob/`, `?moid=ID`, `&doPath=config.hardware.device[4000].backing`, `&method=instantClone`, `?find=NAME`,
`/mob/logout`. The first request signs in by HTTP Basic, further ones by the cookie `vmware_soap_session`. A method's
form has a hidden field `vmware-session-nonce`; a script reads it from the page and posts it to the same address, with a
field for each parameter: plain text for plain values, XML for all others, an array as its element repeated. A post
without this session's nonce is refused with 403.
"""


def lifecycle() -> str:
    states = "".join(f"| `{state.value}` | {_MEANINGS[state]} |\n" for state in VmState)
    return _LIFECYCLE + states + _OPERATIONS + _matrix(list(Operation)) + _HAPPENINGS + _matrix(list(Happening))


def _matrix(moves: list[Operation] | list[Happening]) -> str:
    lines = ["| | " + " | ".join(f"`{state.value}`" for state in VmState) + " |", "|---" * (len(VmState) + 1) + "|"]
    for move in moves:
        found = [TRANSITIONS.get((state, move)) for state in VmState]
        lines.append(f"| {move.value} | " + " | ".join(state.value if state else "" for state in found) + " |")
    return "\n".join(lines) + "\n"


def error_page() -> str:
    meanings = _meanings()
    rows = [
        f"| `{cls.code}` | `{cls.__name__}` | {cls.http_status} | {cls.exit_code} | {meanings[cls.__name__]} |\n"
        for cls in _classes(RametError)
        if cls is not RametError and cls.__module__ == RametError.__module__  # others are kinds of these
    ]
    return _ERRORS + "".join(rows)


def _classes(cls: type[RametError]) -> Iterator[type[RametError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _classes(sub)


def _meanings() -> dict[str, str]:
    """Class -> what stands beside it in the tree at the top of the module."""
    found = {}
    for line in (inspect.getdoc(errors) or "").splitlines():
        name, _, rest = line.lstrip(" │├└─").partition(" ")
        if name.endswith("Error") and rest:
            text = rest.strip().rsplit("(", 1)[0].strip() if rest.rstrip().endswith(")") and "   " in rest else rest
            found[name] = text.strip().capitalize().replace("qemu", "QEMU") + "."
    return {**found, "PeerError": "A program or guest that we talk to broke its contract."}


def automation_page() -> str:
    """Every operation of the table that serves /api, /rest and JSON-RPC."""
    lines = [_AUTOMATION]
    for service, operations in itertools.groupby(TABLE.operations, key=lambda one: one.service):
        lines.append(f"| **`{service}`** | | |\n")
        lines += [_operation(one) for one in operations]
    return "".join(lines) + _OTHERS


def _operation(one: ApiOperation) -> str:
    given = ", ".join(_parameter(name, info) for name, info in one.parameters.model_fields.items())
    action = f"?action={one.action}" if one.action else ""
    return f"| `{one.name}` | `{one.verb} {one.path}{action}` | {given} |\n"


def _parameter(name: str, info: Any) -> str:
    """With the fields of a structure, one level deep."""
    shown = f"`{name}`" if info.is_required() else f"`{name}`?"
    kinds = (info.annotation, *getattr(info.annotation, "__args__", ()))
    spec = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Struct)), None)
    if spec is None:
        return shown
    fields = (f if field.is_required() else f"{f}?" for f, field in spec.model_fields.items())
    return f"{shown} {{{', '.join(fields)}}}"


def generated() -> dict[Path, str]:
    """Every page made here and what stands in it."""
    return {
        DOCS / "lifecycle.md": lifecycle(),
        DOCS / "errors.md": error_page(),
        DOCS / "automation-api.md": automation_page(),
    }


def main() -> int:
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{'stale' if '--check' in sys.argv else 'wrote'}: {path.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            path.write_text(text)
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
