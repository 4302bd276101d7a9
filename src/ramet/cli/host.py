"""Commands about the host and the daemon: ``doctor``, ``serve``, ``tools``, ``demo``, ``version``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli.command import command, group
from ramet.cli.options import Vm
from ramet.cli.output import Cell
from ramet.cli.session import Session

if TYPE_CHECKING:
    from ramet.model.views import CheckView, RepairView

tools = group("tools", "Ramet's tools inside guests.", examples=("ramet tools install web",))


def register(app: typer.Typer) -> None:
    """Put the commands of this file into `app`."""
    looks = ("ramet doctor", "ramet doctor --selftest", "ramet doctor --repair", "ramet doctor --json")
    command(app, "doctor", examples=looks)(doctor)
    command(
        app,
        "serve",
        foreign_options=True,
        examples=("ramet serve", "ramet serve --state /srv/ramet --chain-bound 4 --log-level debug"),
    )(serve)
    command(app, "demo", examples=("ramet demo", "ramet demo --micro    # in seconds", "ramet demo --keep"))(demo)
    command(app, "version", examples=("ramet version", "ramet version --json"))(version)


def doctor(
    session: Session,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Boot a small guest here, clone it live and frozen, compare its memory.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put a damaged inventory together again, while no daemon runs.")
    ] = False,
) -> None:
    """Look at this host: what is there, what is missing, what to do about it. Exit code 1 when something is missing."""
    from ramet.cli import render

    if repair:
        view = _repair(session)
        session.show(view, lambda: render.repair(session.out, view))
        return
    checks = examine(session)
    if selftest:
        checks = [*checks, *_selftest(session)]
    session.show(checks, lambda: render.checks(session.out, checks))
    if any(check.status == "missing" for check in checks):
        raise typer.Exit(1)


def examine(session: Session) -> list[CheckView]:
    """The daemon's checks; where it does not start, those that need no daemon, and the reason first."""
    from ramet.errors import RametError
    from ramet.model.views import CheckView

    try:
        return list(session.client.doctor())
    except (RametError, OSError) as error:
        from ramet.host import doctor as local

        reason = getattr(error, "message", str(error))
        daemon = CheckView(name="daemon", status="missing", found=reason, remedy=getattr(error, "hint", None))
        return [daemon, *local.examine_alone(session.state_dir)]


def _repair(session: Session) -> RepairView:
    """Here and not in the daemon, which does not start with a damaged inventory."""
    from ramet.errors import ConflictError, StateError
    from ramet.host.repair import repair

    try:
        return repair(session.state_dir)
    except ConflictError as exc:
        raise StateError(
            f"A daemon serves {session.state_dir}: its inventory is whole.",
            hint="'ramet doctor' looks at everything else.",
            state="",
            operation="repair",
        ) from exc


def _selftest(session: Session) -> list[CheckView]:
    from ramet.model.views import CheckView

    answer = session.settle(session.client.selftest())
    result = getattr(answer, "result", answer)
    return [item if isinstance(item, CheckView) else CheckView.model_validate(item) for item in result or []]


def serve(
    session: Session,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="--SETTING VALUE...", help="Any setting, like --chain-bound 4.")
    ] = None,
    stop_vms: Annotated[bool, typer.Option("--stop-vms", help="Power off all VMs when the daemon ends.")] = False,
) -> None:
    """Run the daemon in the foreground. Other commands start it by themselves; VMs outlive it."""
    from ramet.cli import parsing
    from ramet.serve import run

    flags = parsing.settings(settings or [])
    raise typer.Exit(run(session.state_dir if session.given_state else None, stop_vms=stop_vms, flags=flags))


@command(tools, "install", examples=("ramet tools install web", "ramet tools install web --ssh admin"))
def install(
    session: Session,
    vm: Vm,
    ssh: Annotated[
        str | None, typer.Option("--ssh", metavar="USER", help="First install the guest agent, logging in as USER.")
    ] = None,
    identity: Annotated[
        str | None, typer.Option("--identity", "-i", metavar="FILE", help="Private key for --ssh.")
    ] = None,
) -> None:
    """Bring the tools into a running guest, by its agent: vmware-rpctool, vmtoolsd, what identities of clones need.

    A guest without an agent gets one from its own package manager with --ssh; USER is root, or may use sudo without
    a password.
    """
    from ramet.cli.tools import install_agent

    if ssh is not None:
        install_agent(session, session.client.show_vm(session.vm(vm)), ssh, identity)
    session.settle(session.client.install_tools(session.vm(vm)))
    view = session.client.show_vm(vm)
    session.show(view, lambda: session.out.say(Cell(view.name, "bold"), " has the tools now"))


def demo(
    session: Session,
    micro: Annotated[bool, typer.Option("--micro", help="With the small guest: in seconds.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the VMs, to look around.")] = False,
    live: Annotated[int, typer.Option("--live", metavar="N", help="Clones of the running guest.", min=1, max=16)] = 3,
    frozen: Annotated[
        int, typer.Option("--frozen", metavar="N", help="Clones of the frozen guest.", min=1, max=16)
    ] = 5,
    many: Annotated[
        int, typer.Option("--many", metavar="N", help="Further clones of it, all at once.", min=0, max=200)
    ] = 12,
) -> None:
    """Boot a guest once, clone it live and frozen, delete it, and see the clones alive; with all times.

    Works in a temporary folder of its own and leaves nothing behind, unless --state or --keep is given.
    """
    from ramet.cli.demo import Plan, perform

    perform(session, Plan(micro=micro, keep=keep, live=live, frozen=frozen, many=many))


def version(session: Session) -> None:
    """Print the version of this program."""
    import platform

    from ramet import __version__

    facts = {"ramet": __version__, "python": platform.python_version()}
    session.show(facts, lambda: session.out.line(f"ramet {__version__}"))
