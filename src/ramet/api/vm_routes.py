"""Routes of VMs: their life, and their clones."""

from __future__ import annotations

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from ramet.api.edge import HostDep, UidDep
from ramet.model.host import Task
from ramet.model.requests import ChangeVm, CloneVm, CopyVm, CreateVm, RegisterVm, StopVm
from ramet.model.views import CloneForecast, VmView

router = APIRouter(prefix="/v1/vms", tags=["vms"])


@router.post("", status_code=202, operation_id="create_vm", summary="Create a VM")
async def create_vm(request: CreateVm, host: HostDep, uid: UidDep) -> Task:
    """Needs a free name, and the image or port groups that it names. The task's result has the VM's `id`.

    On failure nothing is left of the VM.
    """
    return await host.create_vm(request, uid)


@router.get("", operation_id="list_vms", summary="List VMs")
async def list_vms(
    host: HostDep, unregistered: bool = Query(False, description="Those that were unregistered, and no others.")
) -> list[VmView]:
    """All VMs, by name."""
    return await host.list_vms(unregistered)


@router.get("/{ref}", operation_id="show_vm", summary="Show a VM")
async def show_vm(ref: str, host: HostDep) -> VmView:
    """`ref`, here and everywhere, is a VM's name, its id, or the unique beginning of its id."""
    return await host.show_vm(ref)


@router.patch("/{ref}", operation_id="change_vm", summary="Rename or change a VM")
async def change_vm(ref: str, request: ChangeVm, host: HostDep) -> VmView:
    """Fields left out stay as they are. Memory and vCPUs change only while the VM is off."""
    return await host.change_vm(ref, request)


@router.delete("/{ref}", status_code=202, operation_id="remove_vm", summary="Remove a VM")
async def remove_vm(
    ref: str, host: HostDep, force: bool = Query(False, description="Also when it is on: it is powered off hard.")
) -> Task:
    """Needs the VM to be off, unless forced. Its clones live on: layers go when nobody uses them any more."""
    return await host.remove_vm(ref, force)


@router.post("/{ref}/unregister", status_code=204, operation_id="unregister_vm", summary="Unregister a VM")
async def unregister_vm(ref: str, host: HostDep) -> None:
    """Take a VM that is off out of the inventory. All of it is kept, and its name is free for others."""
    await host.unregister_vm(ref)


@router.post("/register", operation_id="register_vm", summary="Register a VM again")
async def register_vm(request: RegisterVm, host: HostDep) -> VmView:
    """Put back what was unregistered, as it was. Needs its name, or the one that is given, to be free."""
    return await host.register_vm(request)


@router.post("/{ref}/copy", status_code=202, operation_id="copy_vm", summary="Copy a VM's disks to another VM")
async def copy_vm(ref: str, request: CopyVm, host: HostDep, uid: UidDep) -> Task:
    """Another machine with the same disks: linked, or with a copy of them. The task's result has its `id`.

    The VM is off, running or frozen. One that is on goes on, and the disks are as at one instant. The copy is off.
    Needs a free name. On failure nothing is left of the copy.
    """
    return await host.copy_vm(ref, request, uid)


@router.post("/{ref}/start", status_code=202, operation_id="start_vm", summary="Start a VM")
async def start_vm(ref: str, host: HostDep) -> Task:
    """Needs the VM to be off or suspended, and memory for it. On failure it is as it was."""
    return await host.start_vm(ref)


@router.post("/{ref}/stop", status_code=202, operation_id="stop_vm", summary="Stop a VM")
async def stop_vm(ref: str, host: HostDep, request: StopVm | None = None) -> Task:
    """Asks the guest to power off, by its agent or ACPI, and waits; `hard` ends it at once.

    A frozen VM loses its frozen state. When the guest does not power off in time the task fails and the VM runs on.
    """
    return await host.stop_vm(ref, request or StopVm())


@router.post("/{ref}/restart", status_code=202, operation_id="restart_vm", summary="Restart a VM")
async def restart_vm(
    ref: str, host: HostDep, hard: bool = Query(False, description="Reset it instead of asking the guest.")
) -> Task:
    """Needs the VM to be on. A frozen VM loses its frozen state."""
    return await host.restart_vm(ref, hard)


@router.post("/{ref}/suspend", status_code=202, operation_id="suspend_vm", summary="Suspend a VM to disk")
async def suspend_vm(ref: str, host: HostDep) -> Task:
    """Needs a running or frozen VM and disk space for its memory. Its process ends; `resume` goes on from there."""
    return await host.suspend_vm(ref)


@router.post("/{ref}/resume", status_code=202, operation_id="resume_vm", summary="Resume a suspended or paused VM")
async def resume_vm(ref: str, host: HostDep) -> Task:
    """Needs a suspended VM, or one that was paused by an error which is gone. On failure it stays as it is."""
    return await host.resume_vm(ref)


@router.post("/{ref}/freeze", status_code=202, operation_id="freeze_vm", summary="Freeze a VM")
async def freeze_vm(ref: str, host: HostDep) -> Task:
    """Needs a running VM. It stands still at one instruction; every clone resumes from there. `thaw` lets it go on."""
    return await host.freeze_vm(ref)


@router.post("/{ref}/thaw", status_code=202, operation_id="thaw_vm", summary="Thaw a frozen VM")
async def thaw_vm(ref: str, host: HostDep) -> Task:
    """Needs a frozen VM. It runs on from where it stood; clones made of it are not touched."""
    return await host.thaw_vm(ref)


@router.post(
    "/{ref}/clone",
    status_code=202,
    operation_id="clone_vm",
    summary="Clone a running or frozen VM",
    response_model=Task,
    responses={200: {"model": CloneForecast, "description": "The answer of a dry run"}},
)
async def clone_vm(ref: str, request: CloneVm, host: HostDep, uid: UidDep) -> Response:
    """Needs a VM that runs or is frozen, free names, and memory. All clones are from the same instant.

    A running source is stunned for some milliseconds and runs on, whatever fails. The task's result is a list of
    `CloneResult`, with the time of every step. `dry_run` makes every check, changes nothing, and answers 200.
    """
    if request.dry_run:
        return JSONResponse((await host.forecast_clone(ref, request)).model_dump(mode="json"))
    task = await host.clone_vm(ref, request, uid)
    return JSONResponse(task.model_dump(mode="json"), status_code=202)


@router.post("/{ref}/identify", status_code=202, operation_id="identify_vm", summary="Give a clone its identity again")
async def identify_vm(
    ref: str, host: HostDep, bare: bool = Query(False, description="Take it as it is, and bring its links up.")
) -> Task:
    """Needs a running clone. Its guest is asked to take on its identity; its links come up when it acknowledges."""
    return await host.identify_vm(ref, bare)
