"""``ramet vm disk`` and ``ramet vm nic``: the parts of a VM that come and go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from ramet.cli.command import command, group
from ramet.cli.options import Vm
from ramet.cli.output import Cell
from ramet.cli.session import Session

disk = group("disk", "Add, grow, export and remove disks.", examples=("ramet vm disk add web 10G",))
nic = group("nic", "Add, change and remove network cards.", examples=("ramet vm nic set web net0 --network lab",))

DiskId = Annotated[str, typer.Argument(metavar="DISK", help="Like disk0; see 'ramet vm show'.")]
NicId = Annotated[str, typer.Argument(metavar="NIC", help="Like net0; see 'ramet vm show'.")]
Size = Annotated[str, typer.Argument(metavar="SIZE", help="Like 10G.")]
Format = Literal["qcow2", "raw", "vmdk"]


@command(disk, "add", examples=("ramet vm disk add web 10G",))
def disk_add(session: Session, vm: Vm, size: Size) -> None:
    """Add an empty disk, also while the VM runs."""
    from ramet.model.requests import AddDisk
    from ramet.model.units import parse_size_mib

    _done(session, session.client.add_disk(session.vm(vm), AddDisk(size_mib=parse_size_mib(size))), vm, "disk added")


@command(disk, "grow", examples=("ramet vm disk grow web disk0 20G",))
def disk_grow(session: Session, vm: Vm, disk_id: DiskId, size: Size) -> None:
    """Make a disk larger, also while the VM runs; the guest grows its file system itself."""
    from ramet.model.requests import GrowDisk
    from ramet.model.units import parse_size_mib

    request = GrowDisk(size_mib=parse_size_mib(size))
    _done(session, session.client.grow_disk(session.vm(vm), disk_id, request), vm, f"{disk_id} is now {size}")


@command(
    disk,
    "export",
    examples=("ramet vm disk export web disk0 web.qcow2", "ramet vm disk export web disk0 web.img --format raw"),
)
def disk_export(
    session: Session,
    vm: Vm,
    disk_id: DiskId,
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to write; it must not exist.")],
    format: Annotated[Format, typer.Option("--format", metavar="qcow2|raw|vmdk", help="Format of the file.")] = "qcow2",
) -> None:
    """Write a disk into one file that needs no other."""
    from pathlib import Path

    from ramet.model.requests import ExportDisk

    request = ExportDisk(path=str(Path(file).expanduser().absolute()), format=format)
    _done(session, session.client.export_disk(session.vm(vm), disk_id, request), vm, f"{disk_id} written to {file}")


@command(disk, "rm", examples=("ramet vm disk rm web disk1",))
def disk_rm(session: Session, vm: Vm, disk_id: DiskId) -> None:
    """Remove a disk and what is on it."""
    _done(session, session.client.remove_disk(session.vm(vm), disk_id), vm, f"{disk_id} removed")


@command(nic, "add", examples=("ramet vm nic add web lab", "ramet vm nic add web lab,model=e1000e"))
def nic_add(
    session: Session,
    vm: Vm,
    network: Annotated[str, typer.Argument(metavar="NETWORK[,…]", help="As in 'ramet vm create --nic'.")] = "default",
) -> None:
    """Add a network card, also while the VM runs."""
    from ramet.cli import parsing

    request = parsing.nic(network)
    session.named.append(("network", request.network or ""))
    _done(session, session.client.add_nic(session.vm(vm), request), vm, "network card added")


@command(
    nic,
    "set",
    examples=(
        "ramet vm nic set web net0 --network lab",
        "ramet vm nic set web net0 --disconnect",
        "ramet vm nic set web net0 --network none    # no port group",
    ),
)
def nic_set(
    session: Session,
    vm: Vm,
    nic_id: NicId,
    network: Annotated[
        str | None, typer.Option("--network", metavar="NETWORK", help="Move to this port group.")
    ] = None,
    connect: Annotated[bool | None, typer.Option("--connect/--disconnect", help="Link up or down.")] = None,
    mac: Annotated[str | None, typer.Option("--mac", metavar="MAC", help="Only while the VM is off.")] = None,
    fence: Annotated[
        str | None, typer.Option("--fence", metavar="NAME", help="On a fenced port group: share this fence.")
    ] = None,
) -> None:
    """Move a network card to another port group, or unplug its cable; also while the VM runs."""
    from ramet.cli import parsing
    from ramet.errors import UsageError
    from ramet.model.requests import NicChange

    if network is None and connect is None and mac is None and fence is None:
        raise UsageError("Nothing to change was given.", hint="See 'ramet vm nic set --help'.")
    session.named.append(("network", network or ""))
    fields = {"id": nic_id, "network": "" if network == "none" else network, "connected": connect, "mac": mac}
    fields["fence"] = fence
    _done(
        session, session.client.change_nic(session.vm(vm), parsing.request(NicChange, fields)), vm, f"{nic_id} changed"
    )


@command(nic, "rm", examples=("ramet vm nic rm web net1",))
def nic_rm(session: Session, vm: Vm, nic_id: NicId) -> None:
    """Remove a network card."""
    _done(session, session.client.remove_nic(session.vm(vm), nic_id), vm, f"{nic_id} removed")


def _done(session: Session, answer: Any, vm: str, text: str) -> None:
    """Wait if it is a task; show the VM as JSON, or say what was done."""
    session.settle(answer)
    if session.out.as_json:
        session.out.json(session.client.show_vm(vm))
    else:
        session.out.say(Cell(vm, "bold"), f": {text}")
