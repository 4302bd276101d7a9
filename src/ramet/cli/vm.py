"""``ramet vm``: make, look at, start, stop and change machines."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ramet.cli import complete
from ramet.cli.command import command, group
from ramet.cli.options import Set, Vm, Vms, Wait
from ramet.cli.output import Cell, duration
from ramet.cli.session import Session

app = group(
    "vm",
    "Make, look at and change VMs.",
    examples=("ramet vm create web --image debian --start", "ramet vm ls", "ramet vm show web"),
)

Display = Literal["none", "vga", "virtio"]
Firmware = Literal["bios", "uefi"]
Accel = Literal["auto", "kvm", "tcg"]


@command(
    app,
    "create",
    examples=(
        "ramet vm create web --image debian --memory 1G --cpus 2 --start",
        "ramet vm create probe --image micro --nic none --set guestinfo.role=probe",
        "ramet vm create lab --disk 20G --cdrom debian.iso --display vga --firmware uefi",
        "ramet vm create db --image debian --nic default,model=e1000e --nic storage --ssh-key ~/.ssh/id_ed25519.pub",
    ),
)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new VM.")],
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="Image to start from.", autocompletion=complete.images),
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", "-m", metavar="SIZE", help="Like 512M or 2G.")] = None,
    cpus: Annotated[int, typer.Option("--cpus", metavar="N", help="Virtual CPUs.")] = 1,
    nic: Annotated[
        list[str] | None,
        typer.Option(
            "--nic",
            metavar="NETWORK[,…]",
            help="A network card: port group, 'user' or 'none', then model=virtio|e1000e|vmxnet3, mac=…, "
            "disconnected. Repeatable; default: one virtio card on 'default'.",
        ),
    ] = None,
    no_nic: Annotated[bool, typer.Option("--no-nic", help="No network card at all.")] = False,
    disk: Annotated[
        list[str] | None,
        typer.Option("--disk", metavar="SIZE|image=IMAGE", help="A further disk, empty or from an image. Repeatable."),
    ] = None,
    display: Annotated[
        Display, typer.Option("--display", metavar="none|vga|virtio", help="A screen, by VNC.")
    ] = "none",
    firmware: Annotated[
        Firmware | None, typer.Option("--firmware", metavar="bios|uefi", help="Default: the image's.")
    ] = None,
    cdrom: Annotated[
        list[str] | None, typer.Option("--cdrom", metavar="FILE", help="An ISO image. At most two.")
    ] = None,
    ssh_key: Annotated[
        list[str] | None,
        typer.Option("--ssh-key", metavar="FILE|KEY", help="Public key for root, by cloud-init. Repeatable."),
    ] = None,
    user_data: Annotated[
        str | None, typer.Option("--user-data", metavar="FILE", help="A cloud-init user-data document.")
    ] = None,
    set_: Set = None,
    autostart: Annotated[bool, typer.Option("--autostart", help="Start it with the daemon.")] = False,
    accel: Annotated[
        Accel, typer.Option("--accel", metavar="auto|kvm|tcg", help="auto: KVM where a probe shows that it works.")
    ] = "auto",
    cpu_limit: Annotated[
        int | None, typer.Option("--cpu-limit", metavar="PERCENT", help="Limit in percent of one core.")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    tpm: Annotated[bool, typer.Option("--tpm", hidden=True)] = False,
    passthrough: Annotated[list[str] | None, typer.Option("--passthrough", metavar="ADDR", hidden=True)] = None,
) -> None:
    """Make a VM from an image or from empty disks."""
    from pathlib import Path

    from ramet.cli import parsing
    from ramet.model.requests import CreateVm
    from ramet.model.units import parse_size_mib

    if image:
        session.named.append(("image", image))
    nics = parsing.nics(nic, no_nic)
    session.named += [("network", one.network) for one in nics or () if one.network]
    fields = {
        "name": name,
        "image": image,
        "memory_mib": parse_size_mib(memory) if memory else None,
        "vcpus": cpus,
        "firmware": firmware,
        "nics": nics,
        "disks": tuple(parsing.disk(text) for text in disk or ()),
        "display": display,
        "cdroms": tuple(str(Path(file).expanduser().absolute()) for file in cdrom or ()),
        "ssh_keys": tuple(parsing.ssh_key(key) for key in ssh_key or ()),
        "user_data": parsing.read_text(user_data) if user_data else None,
        "extra_config": parsing.keys(set_),
        "autostart": autostart,
        "accelerator": accel,
        "cpu_limit_percent": cpu_limit,
        "tpm": tpm,
        "passthrough": tuple(passthrough or ()),
        "start": start,
    }
    session.settle(session.client.create_vm(parsing.request(CreateVm, fields)))
    _answer(session, name, "started" if start else "created")


@command(app, "copy", examples=("ramet vm copy golden web", "ramet vm copy golden web --full --start"))
def copy(
    session: Session,
    vm: Vm,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the copy.")],
    full: Annotated[
        bool, typer.Option("--full", help="Copy the disks; else both go on from the disks as they are now.")
    ] = False,
    set_: Set = None,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
) -> None:
    """Make another VM, that is off, with the disks of one.

    Of one that runs they are as after a power cut, and it goes on. 'ramet clone' clones it with its memory.
    """
    from ramet.cli import parsing
    from ramet.model.requests import CopyVm

    fields = {"name": name, "linked": not full, "set_config": parsing.keys(set_), "start": start}
    session.settle(session.client.copy_vm(session.vm(vm), parsing.request(CopyVm, fields)))
    _answer(session, name, "started" if start else "copied")


@command(app, "ls", examples=("ramet vm ls", "ramet vm ls --json", "ramet vm ls -q    # names alone"))
def ls(
    session: Session,
    unregistered: Annotated[bool, typer.Option("--unregistered", help="Those that were unregistered.")] = False,
) -> None:
    """List all VMs: state, size, memory they really use, address, and what they were made from."""
    from ramet.cli import render

    vms = session.client.list_vms(unregistered=unregistered)
    session.show(vms, lambda: render.vm_list(session.out, vms))


@command(app, "show", examples=("ramet vm show web", "ramet vm show web --json | jq .memory"))
def show(session: Session, vm: Vm) -> None:
    """Show everything about a VM: hardware, addresses, disks with their layers, lineage, memory, last stuns."""
    from ramet.cli import render

    view = session.client.show_vm(session.vm(vm))
    session.show(view, lambda: render.vm_page(session.out, view, session.now()))


@command(app, "start", examples=("ramet vm start web", "ramet vm start web db cache"))
def start(session: Session, vm: Vms) -> None:
    """Start VMs that are off."""
    _each(session, vm, "started", lambda ref: session.client.start_vm(ref))


@command(app, "stop", examples=("ramet vm stop web", "ramet vm stop web --timeout 2m", "ramet vm stop web --hard"))
def stop(
    session: Session,
    vm: Vms,
    hard: Annotated[
        bool, typer.Option("--hard", help="Pull the plug: what the guest has not written is lost.")
    ] = False,
    timeout: Wait = "60s",
) -> None:
    """Stop VMs: by the guest agent or the power button, or at once with --hard."""
    from ramet.cli import parsing
    from ramet.model.requests import StopVm
    from ramet.model.units import parse_duration_s

    request = parsing.request(StopVm, {"hard": hard, "timeout_s": parse_duration_s(timeout)})
    _each(session, vm, "stopped", lambda ref: session.client.stop_vm(ref, request))


@command(app, "restart", examples=("ramet vm restart web", "ramet vm restart web --hard"))
def restart(
    session: Session,
    vm: Vms,
    hard: Annotated[bool, typer.Option("--hard", help="Reset instead of asking the guest.")] = False,
) -> None:
    """Restart VMs."""
    _each(session, vm, "restarted", lambda ref: session.client.restart_vm(ref, hard))


@command(app, "suspend", examples=("ramet vm suspend web",))
def suspend(session: Session, vm: Vms) -> None:
    """Write a VM's whole state to disk and end its process; resume brings it back."""
    _each(session, vm, "suspended", lambda ref: session.client.suspend_vm(ref))


@command(app, "resume", examples=("ramet vm resume web",))
def resume(session: Session, vm: Vms) -> None:
    """Bring a suspended VM back, or let a paused one go on."""
    _each(session, vm, "resumed", lambda ref: session.client.resume_vm(ref))


@command(app, "freeze", examples=("ramet vm freeze web    # then: ramet clone web web-1 web-2",))
def freeze(session: Session, vm: Vm) -> None:
    """Hold a VM at this instant: every clone made from now on starts exactly here."""
    _each(session, [vm], "frozen", lambda ref: session.client.freeze_vm(ref))


@command(app, "thaw", examples=("ramet vm thaw web",))
def thaw(session: Session, vm: Vm) -> None:
    """Let a frozen VM go on; its clones are not concerned."""
    _each(session, [vm], "thawed", lambda ref: session.client.thaw_vm(ref))


@command(app, "rename", examples=("ramet vm rename web web-old",))
def rename(
    session: Session, vm: Vm, name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")]
) -> None:
    """Give a VM another name; its id, disks and addresses stay."""
    from ramet.cli import parsing
    from ramet.model.requests import ChangeVm

    view = session.client.change_vm(session.vm(vm), parsing.request(ChangeVm, {"name": name}))
    session.show(view, lambda: session.out.say(Cell(name, "bold"), f" was {vm}"))


@command(
    app,
    "set",
    examples=(
        "ramet vm set web --memory 2G --cpus 4    # while it is off",
        "ramet vm set web --set guestinfo.role=db --unset guestinfo.old",
        "ramet vm set web --autostart --cpu-limit 150",
        "ramet vm set web-3 --ttl 2h              # or --ttl none",
    ),
)
def set_vm(
    session: Session,
    vm: Vm,
    memory: Annotated[str | None, typer.Option("--memory", "-m", metavar="SIZE", help="Only while it is off.")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", metavar="N", help="Only while it is off.")] = None,
    set_: Set = None,
    unset: Annotated[list[str] | None, typer.Option("--unset", metavar="KEY", help="Forget a key. Repeatable.")] = None,
    autostart: Annotated[bool | None, typer.Option("--autostart/--no-autostart", help="Start with the daemon.")] = None,
    cpu_limit: Annotated[
        int | None, typer.Option("--cpu-limit", metavar="PERCENT", help="In percent of one core; 0 lifts it.")
    ] = None,
    memory_target: Annotated[
        str | None,
        typer.Option("--memory-target", metavar="SIZE", help="What the balloon leaves the guest, or 'none'."),
    ] = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="TIME", help="Remove it when that is over, from now on; or 'none'.")
    ] = None,
) -> None:
    """Change a VM: memory, CPUs, configuration keys, autostart, limits, time to live."""
    from ramet.cli import parsing
    from ramet.errors import UsageError
    from ramet.model.requests import ChangeVm
    from ramet.model.units import parse_duration_s, parse_size_mib

    fields = {
        "memory_target_mib": 0 if memory_target == "none" else parse_size_mib(memory_target) if memory_target else None,
        "ttl_s": 0 if ttl == "none" else parse_duration_s(ttl) if ttl else None,
        "memory_mib": parse_size_mib(memory) if memory else None,
        "vcpus": cpus,
        "autostart": autostart,
        "cpu_limit_percent": cpu_limit,
        "set_config": parsing.keys(set_),
        "unset_config": tuple(unset or ()),
    }
    change = parsing.request(ChangeVm, fields)
    if change == ChangeVm():
        raise UsageError("Nothing to change was given.", hint="See 'ramet vm set --help'.")
    view = session.client.change_vm(session.vm(vm), change)
    session.show(view, lambda: session.out.say(Cell(view.name, "bold"), " changed"))


@command(
    app,
    "identify",
    examples=(
        "ramet vm identify web-2           # ask its guest again",
        "ramet vm identify web-2 --bare    # as it is",
    ),
)
def identify(
    session: Session,
    vm: Vm,
    bare: Annotated[bool, typer.Option("--bare", help="Take the clone as it is, and bring its links up.")] = False,
) -> None:
    """Ask a clone that stays off the network for its identity once more.

    Its links come up when its guest acknowledges.
    """
    task = session.settle(session.client.identify_vm(session.vm(vm), bare))
    session.show(task.result, lambda: session.out.say(Cell(vm, "bold"), " is on its networks"))


@command(app, "rm", examples=("ramet vm rm web", "ramet vm rm web-1 web-2 --force    # even while they run"))
def rm(
    session: Session,
    vm: Vms,
    force: Annotated[bool, typer.Option("--force", "-f", help="Stop it first, hard.")] = False,
) -> None:
    """Remove VMs and their disks. Clones of them, and what they were cloned from, are not concerned."""
    from ramet.cli.session import run_all

    def remove(ref: str) -> dict[str, str]:
        session.settle(session.client.remove_vm(session.vm(ref), force))
        session.out.say(Cell(ref, "bold"), " removed")
        return {"removed": ref}

    run_all(session, vm, remove)


@command(app, "unregister", examples=("ramet vm unregister web",))
def unregister(session: Session, vm: Vms) -> None:
    """Take VMs that are off out of the inventory, and keep them: 'ramet vm register' puts them back.

    Their names are free for others.
    """
    from ramet.cli.session import run_all

    def one(ref: str) -> dict[str, str]:
        view = session.client.show_vm(session.vm(ref))
        session.client.unregister_vm(view.id)
        session.out.say(Cell(ref, "bold"), " unregistered", Cell(f"  {view.id}", "dim"))
        return {"unregistered": ref, "id": view.id}

    run_all(session, vm, one)


@command(app, "register", examples=("ramet vm register web", "ramet vm register 3f00a1b2c2ba --name old-web"))
def register(
    session: Session,
    vm: Annotated[str, typer.Argument(metavar="VM", help="As 'ramet vm ls --unregistered' lists it, or its id.")],
    name: Annotated[str | None, typer.Option("--name", help="Instead of the one it had.")] = None,
) -> None:
    """Put a VM back that was unregistered."""
    from ramet.cli import parsing
    from ramet.model.requests import RegisterVm

    view = session.client.register_vm(parsing.request(RegisterVm, {"ref": vm, "name": name}))
    _answer(session, view.name, "registered")


def _each(session: Session, refs: list[str], done: str, act: object) -> None:
    """Act on every VM; one that fails does not keep the others from it."""
    from ramet.cli.session import run_all

    def one(ref: str) -> object:
        started = session.now()
        session.settle(act(session.vm(ref)))  # type: ignore[operator]
        took = session.now() - started
        view = session.client.show_vm(ref)
        session.out.say(Cell(view.name, "bold"), f" {done}", Cell(f"  {_took(took)}", "dim"))
        return view

    run_all(session, refs, one)


def _took(seconds: float) -> str:
    from ramet.cli.output import millis

    return millis(seconds * 1000) if seconds < 60 else duration(seconds)


def _answer(session: Session, name: str, done: str) -> None:
    view = session.client.show_vm(name)
    session.show(view, lambda: session.out.say(Cell(view.name, "bold"), f" {done}", Cell(f"  {view.id}", "dim")))
