"""The honest proof on the user's own host and accelerator: a small guest, cloned live and frozen, by checksum.

It goes through the same doors as every caller, and leaves nothing but the micro image.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ramet.errors import DeadlineError, InternalError, RametError, from_dict
from ramet.host.tasks import TaskHandle
from ramet.model.host import Task, TaskState
from ramet.model.machine import VmState
from ramet.model.requests import BuildImage, CloneVm, CreateVm, Exec, NicRequest
from ramet.model.units import new_id
from ramet.model.views import CheckView

if TYPE_CHECKING:
    from ramet.host.service import Host

IMAGE = "micro"
MEMORY_MIB = 256
BLOB_MIB = 48
TASK_TIMEOUT_S = 300.0
BOOT_TIMEOUT_S = 120.0

_FILL = f"dd if=/dev/urandom of=/tmp/blob bs=1M count={BLOB_MIB} 2>/dev/null && md5sum < /tmp/blob"
_SUM = "md5sum < /tmp/blob"
_FREEZE = (
    "(vmware-rpctool instantclone.freeze; echo $? > /tmp/frozen; "
    "vmware-rpctool 'info-get guestinfo.who' >> /tmp/frozen) >/dev/null 2>&1 &"
)


async def selftest(host: Host, handle: TaskHandle) -> list[CheckView]:
    """Raises what goes wrong; otherwise one check for each promise, 'ok' or 'missing'."""
    prefix = f"selftest-{new_id()[:6]}"
    names = [f"{prefix}-{part}" for part in ("source", "live", "frozen1", "frozen2")]
    async with _removed(host, names):
        with handle.step("image"):
            await _image(host)
        with handle.step("boot"):
            await _boot(host, names[0])
            before = await _sh(host, names[0], _FILL)
        with handle.step("live clone"):
            checks = [await _live(host, names, before)]
        with handle.step("frozen clones"):
            checks += await _frozen(host, names, before)
    return checks


async def _live(host: Host, names: list[str], before: str) -> CheckView:
    source, clone = names[:2]
    await finish(host, await host.clone_vm(source, CloneVm(names=(clone,), bare=True)))
    sums = {name: await _sh(host, name, _SUM) for name in (source, clone)}
    await _sh(host, clone, "echo changed > /tmp/blob")
    after = await _sh(host, source, _SUM)
    good = set(sums.values()) == {before} and after == before
    found = f"{BLOB_MIB} MiB of guest memory are the same in source and clone, and stay the source's own"
    return _check("live clone", good, found if good else f"{before} before; {sums}; the source later: {after}")


async def _frozen(host: Host, names: list[str], before: str) -> list[CheckView]:
    source, clones = names[0], names[2:]
    await _sh(host, source, _FREEZE)
    await _wait_frozen(host, source)
    checks = []
    for clone in clones:
        request = CloneVm(names=(clone,), bare=True, extra_config={"guestinfo.who": clone})
        await finish(host, await host.clone_vm(source, request))
        found = await _sh(host, clone, _SUM)
        told = await _sh(host, clone, "until [ $(wc -l < /tmp/frozen) -ge 2 ]; do :; done; cat /tmp/frozen")
        good = found == before and told.split() == ["0", clone]
        right = "the same memory, and the script in the guest went on with its own key"
        seen = right if good else f"checksum {found} instead of {before}; the guest's script said {told!r}"
        checks.append(_check(f"frozen clone {clone[-1]}", good, seen))
    frozen = (await host.show_vm(source)).state is VmState.FROZEN
    return [*checks, _check("frozen source", frozen, "it stays frozen" if frozen else "it does not stay frozen")]


def _check(name: str, good: bool, found: str) -> CheckView:
    remedy = None if good else "Forking does not work right on this host: report it with 'ramet doctor --json'."
    return CheckView(name=name, status="ok" if good else "missing", found=found, remedy=remedy)


async def _image(host: Host) -> None:
    if IMAGE not in {image.name for image in await host.list_images()}:
        await finish(host, await host.build_image(BuildImage(recipe="micro")))


async def _boot(host: Host, name: str) -> None:
    request = CreateVm(name=name, image=IMAGE, memory_mib=MEMORY_MIB, nics=(NicRequest(network=None),), start=True)
    await finish(host, await host.create_vm(request))
    await host.wait_agent(name, BOOT_TIMEOUT_S)


async def _wait_frozen(host: Host, name: str) -> None:
    """The guest freezes itself; the event says when."""
    async with asyncio.timeout(BOOT_TIMEOUT_S):
        async for event in host.events.follow(0):
            if event.vm_name == name and event.kind == "vm.state" and (await host.show_vm(name)).frozen:
                return


async def _sh(host: Host, name: str, script: str) -> str:
    result = await host.exec_in_vm(name, Exec(argv=("/bin/sh", "-c", script), timeout_s=120.0))
    if result.exit_code != 0:
        raise InternalError(f"The guest's command ended with {result.exit_code}: {script[:60]}")
    return base64.b64decode(result.stdout_base64).decode().strip()


async def finish(host: Host, task: Task) -> Any:
    """Wait for a task's result. Raises its error."""
    ended = await host.tasks.wait(task.id, TASK_TIMEOUT_S)
    if ended.state is TaskState.SUCCESS:
        return ended.result
    if not ended.state.is_final:
        raise DeadlineError(f"{ended.kind} of {ended.target!r} did not end in {TASK_TIMEOUT_S:.0f} s.")
    raise from_dict(ended.error or {"message": f"{ended.kind} was cancelled."})


@contextlib.asynccontextmanager
async def _removed(host: Host, names: list[str]) -> AsyncIterator[None]:
    """Whatever happens, the machines of the test go."""
    try:
        yield
    finally:
        for name in names:
            with contextlib.suppress(RametError):
                await finish(host, await host.remove_vm(name, force=True))
