"""TaskManager: what runs, what ran lately, and collectors over the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.tasks.collector import MAX_COLLECTORS, TaskCollector
from ramet.vsphere.tasks.desk import Tasks
from ramet.vsphere.tasks.record import description_id
from ramet.vsphere.types import Support, vim, vmodl

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World

MAX_KIND = 200
_DESCRIBED = (vim.VirtualMachine, vim.Folder, vim.Datacenter, vim.HostSystem, vim.ResourcePool, vim.Datastore)
_STATES = {"queued": "Queued", "running": "Running", "success": "Completed", "error": "Failed"}
_REASONS = {vim.TaskReasonUser: "by a user", vim.TaskReasonSystem: "by the server itself"}


class TaskManager(Mo):
    wire = vim.TaskManager

    @property
    def tasks(self) -> Tasks:
        return self.world.part(Tasks)

    @prop("recentTask")
    def get_recent(self) -> list[Any]:
        return self.tasks.recent_of_all()

    @prop("maxCollector")
    def get_max_collectors(self) -> int:
        return MAX_COLLECTORS

    @prop("description")
    def get_description(self) -> Any:
        methods = [
            vim.ElementDescription(key=description_id(_name(kind), info, ""), label=label, summary=label)
            for kind in _DESCRIBED
            for info, label in _long_methods(kind)
        ]
        states = [vim.ElementDescription(key=key, label=label, summary=label) for key, label in _STATES.items()]
        reasons = [vim.TypeDescription(key=key, label=label, summary=label) for key, label in _REASONS.items()]
        return vim.TaskDescription(methodInfo=methods, state=states, reason=reasons)

    @operation("CreateCollectorForTasks")
    async def collect(self, call: Call, filter: Any) -> Any:
        return self._collect(call, filter)

    @operation("CreateCollectorWithInfoFilterForTasks", partial="the second filter is not looked at")
    async def collect_with_filter(self, call: Call, filter: Any, infoFilter: Any = None) -> Any:
        return self._collect(call, filter)

    @operation("CreateTask", partial="parentTaskKey and activationId are not kept")
    async def create(
        self,
        call: Call,
        obj: Any,
        taskTypeId: str,
        cancelable: bool,
        initiatedBy: str | None = None,
        parentTaskKey: str | None = None,
        activationId: str | None = None,
    ) -> Any:
        """For clients whose work is done elsewhere, and who say here how it goes."""
        if not 0 < len(taskTypeId) <= MAX_KIND:
            raise vmodl.fault.InvalidArgument(invalidProperty="taskTypeId", msg=f"It has 1 to {MAX_KIND} characters.")
        entity = self.world.find(obj._moId, call)
        reference = await self.tasks.clients.begin(call, entity, taskTypeId, cancelable=cancelable)
        mo = self.world.find(reference._moId)
        return mo.getters["info"](mo)

    def _collect(self, call: Call, spec: Any) -> Any:
        session = call.session_or_fault(self)
        held = sum(isinstance(one, TaskCollector) for one in session.objects.values())
        if held >= MAX_COLLECTORS:
            raise vim.fault.InvalidState(msg=f"A session has at most {MAX_COLLECTORS} collectors; destroy some.")
        moid = self.world.moid(f"session[{session.key}]taskCollector")
        return self.world.keep(call, TaskCollector(self.world, moid, spec))


def _name(kind: Any) -> str:
    return str(kind._wsdlName)


def _long_methods(kind: Any) -> list[tuple[Any, str]]:
    """Methods that return a Task, with words for people: 'Instant clone'."""
    found = []
    for info in kind._GetMethodList():
        if info.wsdlName.endswith("_Task"):
            words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in info.name).strip()
            found.append((Support.GetWsdlMethod("urn:vim25", info.wsdlName), words.capitalize()))
    return found


def objects(world: World) -> list[Mo]:
    return [TaskManager(world, ids.TASK_MANAGER)]
