"""pyVmomi, unmodified, against the daemon of a stage: what a script that people have does.

    with opened(client) as door:                     # the listener, on a free port of this machine
        with door.connected() as content: …          # one client: connects, and disconnects in the end

Imported by cases when they run: pyVmomi takes a third of a second.
"""

from __future__ import annotations

import contextlib
import secrets
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from ramet.api.client import Client
from ramet.errors import DeadlineError, PeerError
from ramet.model.access import AddUser, Role, SetVsphere

_UPDATE_S = 30.0
LISTED = ("name", "runtime.powerState", "guest.ipAddress")


@dataclass(frozen=True)
class Door:
    """Where clients come in, and as whom."""

    port: int
    user: str
    password: str
    context: ssl.SSLContext

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        """The ServiceInstance's content."""
        instance = SmartConnect(
            host="127.0.0.1", port=self.port, user=self.user, pwd=self.password, sslContext=self.context
        )
        try:
            yield instance.RetrieveContent()
        finally:
            Disconnect(instance)


@contextlib.contextmanager
def opened(client: Client) -> Iterator[Door]:
    """For a user of its own, who is left behind: the daemon is the bench's."""
    who = client.add_user(AddUser(name=f"bench-{secrets.token_hex(4)}", role=Role.ADMINISTRATOR))
    view = client.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0"))
    try:
        port = urlsplit(view.url or "").port
        if port is None or view.ca_file is None:
            raise PeerError(f"The bench's daemon does not serve vSphere clients: {view.problem}")
        yield Door(port, who.name, who.password or "", ssl.create_default_context(cafile=view.ca_file))
    finally:
        client.set_vsphere(SetVsphere(on=False))


def find_vm(content: Any, name: str) -> Any:
    """By its path, as scripts do."""
    found = content.searchIndex.FindByInventoryPath(f"ramet/vm/{name}")
    if found is None:
        raise PeerError(f"The vSphere surface does not find {name!r}.")
    return found


def clone(vm: Any, name: str) -> str:
    """InstantClone_Task, and WaitForTask; the task's id in the host."""
    task = vm.InstantClone_Task(vim.vm.InstantCloneSpec(name=name, location=vim.vm.RelocateSpec()))
    WaitForTask(task)
    return f"{int(task._moId.removeprefix('task-')):012x}"


def list_all(content: Any) -> int:
    """A container view of all VMs, three properties of each; how many came."""
    view, collector = all_vms(content), content.propertyCollector
    options = vmodl.query.PropertyCollector.RetrieveOptions()
    page = collector.RetrievePropertiesEx([_filter(view, LISTED)], options)
    count = len(page.objects)
    while page.token:
        page = collector.ContinueRetrievePropertiesEx(page.token)
        count += len(page.objects)
    view.DestroyView()
    return count


def all_vms(content: Any) -> Any:
    return content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)


def _filter(view: Any, paths: tuple[str, ...]) -> Any:
    kind = vmodl.query.PropertyCollector
    step = kind.TraversalSpec(name="view", path="view", skip=False, type=type(view))
    return kind.FilterSpec(
        objectSet=[kind.ObjectSpec(obj=view, skip=True, selectSet=[step])],
        propSet=[kind.PropertySpec(type=vim.VirtualMachine, all=False, pathSet=list(paths))],
    )


class Waiter:
    """A client that waits for changes of all VMs' names, on a thread of its own. `close` ends it."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._arrived: dict[str, float] = {}
        self._news = threading.Condition()
        self._ended = threading.Event()
        self._waits = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._waits.wait(_UPDATE_S):
            raise DeadlineError("The vSphere client that waits has not begun to.")

    def _run(self) -> None:
        with self._door.connected() as content:
            collector, version = content.propertyCollector, ""
            collector.CreateFilter(_filter(all_vms(content), ("name",)), False)
            options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=1)
            while not self._ended.is_set():
                found = collector.WaitForUpdatesEx(version, options)
                version, news = (found.version, self._told(found)) if found is not None else (version, {})
                if version and (found is None or not found.truncated):
                    self._waits.set()
                with self._news:
                    self._arrived |= news
                    self._news.notify_all()

    @staticmethod
    def _told(found: Any) -> dict[str, float]:
        at = time.monotonic()
        changes = (one for part in found.filterSet for changed in part.objectSet for one in changed.changeSet)
        return {str(change.val): at for change in changes}

    def arrival(self, name: str) -> float:
        """When it heard of that name, by the monotonic clock."""
        with self._news:
            if not self._news.wait_for(lambda: name in self._arrived, _UPDATE_S):
                raise DeadlineError(f"The vSphere client heard nothing of {name!r}.")
            return self._arrived[name]

    def close(self) -> None:
        self._ended.set()
        self._thread.join(_UPDATE_S)
