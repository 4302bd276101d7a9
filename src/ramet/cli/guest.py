"""Reaching into guests: commands, files, the console, the screen, ssh and forwarded ports."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import complete
from ramet.cli.command import command
from ramet.cli.options import Vm
from ramet.cli.output import Cell, size
from ramet.cli.session import Session, program

if TYPE_CHECKING:
    from ramet.model.views import VmView

ESCAPE = 0x1D
"""Ctrl-], as in telnet and virsh."""

SCROLLBACK_BYTES = 16384


def register(app: typer.Typer, vm: typer.Typer) -> None:
    """Put the commands of this file into the root and into ``ramet vm``."""
    command(
        vm,
        "exec",
        passthrough=True,
        examples=(
            "ramet vm exec web -- uname -a",
            "ramet vm exec --wait 2m web -- systemctl is-system-running    # just started",
            "ramet vm exec web -- sh -c 'cat /proc/meminfo | head -1'",
            "ramet vm exec web -- tail -f /var/log/syslog    # Ctrl-C ends it there",
            "echo hello | ramet vm exec --stdin web -- tee /tmp/greeting",
        ),
    )(exec_)
    command(
        vm,
        "cp",
        examples=(
            "ramet vm cp app.conf web:/etc/app.conf",
            "ramet vm cp web:/var/log/syslog .",
            "ramet vm cp web:/etc/os-release -",
            "ramet vm cp -r site web:/srv/www",
        ),
    )(cp)
    command(vm, "console", examples=("ramet vm console web    # Ctrl-] ends it", "ramet vm console web --log"))(console)
    command(vm, "screenshot", examples=("ramet vm screenshot web", "ramet vm screenshot web screen.png"))(screenshot)
    command(
        app,
        "ssh",
        passthrough=True,
        examples=("ramet ssh web", "ramet ssh admin@web -- -L 8080:localhost:80", "ramet ssh web -- uptime"),
    )(ssh)
    command(app, "forward", examples=("ramet forward web 8080:80", "ramet forward db 5432"))(forward)
    command(app, "_tunnel", hidden=True)(tunnel)


def exec_(
    session: Session,
    vm: Vm,
    argv: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="Command and arguments; no shell in between.")
    ],
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="Kill it after this, like 5m; default: never.")
    ] = None,
    wait: Annotated[
        str | None, typer.Option("--wait", metavar="TIME", help="Wait so long for a guest that is still coming up.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="For the command.")] = None,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Hand our standard input to the command.")] = False,
) -> None:
    """Run a command in the guest, by the guest agent: its output comes while it runs, its exit code becomes ours.

    Ctrl-C is sent to the command; the second one asks it to end, the third one kills it.
    """
    from ramet.cli import follow, parsing
    from ramet.cli.agent import wait_for_agent
    from ramet.model.execution import FollowExec
    from ramet.model.units import parse_duration_s

    fields = {
        "argv": tuple(argv[1:] if argv[0] == "--" else argv),
        "env": parsing.keys(env, "--env"),
        "stdin": stdin,
        **({"timeout_s": parse_duration_s(timeout)} if timeout else {}),
    }
    request = parsing.request(FollowExec, fields)
    if wait:
        wait_for_agent(session.client, session.vm(vm), parse_duration_s(wait))
    collected = follow.Collected(session.out)
    ended = follow.run(session.client, session.vm(vm), request, collected)
    if session.out.as_json:
        session.out.json({"exit_code": ended.exit_code, "signal": ended.signal, **collected.as_json()})
    elif collected.truncated:
        session.out.warn("The output was longer than is kept; it is cut.")
    raise typer.Exit(ended.exit_code or 0)


def cp(
    session: Session,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A file, VM:/path, or -", autocompletion=complete.guest_files)
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A file, VM:/path, or -", autocompletion=complete.guest_files)
    ],
    mode: Annotated[
        str | None, typer.Option("--mode", metavar="OCTAL", help="Of a file copied in; default: its own.")
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Folders with all that is in them; the guest needs tar.")
    ] = False,
) -> None:
    """Copy a file into a guest or out of it, by the guest agent; with -r a folder.

    A TARGET that ends with / is a folder to copy into. Of folders copied in, everything belongs to root.
    """
    from ramet.cli import parsing
    from ramet.errors import UsageError

    inside, outside = parsing.guest_path(target), parsing.guest_path(source)
    if (inside is None) == (outside is None):
        raise UsageError("One of the two must be a path in a guest.", hint="Write it like web:/etc/hosts.")
    if inside is not None and recursive and Path(source).expanduser().is_dir():
        _folder_in(session, Path(source).expanduser(), *inside)
    elif inside is not None:
        _copy_in(session, source, *inside, mode)
    elif outside is not None and recursive:
        _folder_out(session, *outside, target)
    elif outside is not None:
        _copy_out(session, *outside, target)


def _folder_in(session: Session, folder: Path, vm: str, path: str) -> None:
    from ramet.cli import folders

    path = path + folder.resolve().name if path.endswith("/") else path
    count = folders.copy_in(session.client, session.vm(vm), folder, path)
    session.show({"bytes": count, "vm": vm, "path": path}, lambda: session.out.note(f"{size(count)} to {vm}:{path}"))


def _folder_out(session: Session, vm: str, path: str, target: str) -> None:
    from ramet.cli import folders
    from ramet.errors import ConflictError

    folder = Path(target).expanduser()
    if target.endswith("/") or folder.is_dir():
        folder = folder / Path(path).name
    if folder.exists():
        raise ConflictError(f"{folder} is there already.", hint="Remove it, or choose another name.")
    count = folders.copy_out(session.client, session.vm(vm), path, folder)
    session.show({"bytes": count, "vm": vm, "path": path}, lambda: session.out.note(f"{size(count)} to {folder}"))


def _copy_in(session: Session, source: str, vm: str, path: str, mode: str | None) -> None:
    from ramet.errors import UsageError

    try:
        bits = int(mode, 8) if mode else None
    except ValueError:
        raise UsageError(f"--mode {mode!r} is not octal.", hint="Write it like 0644.") from None
    if source == "-":
        data, own = sys.stdin.buffer.read(), 0o644
    else:
        file = Path(source).expanduser()
        if file.is_dir():
            raise UsageError(f"{source} is a folder.", hint="Copy it with -r.")
        data, own = file.read_bytes(), file.stat().st_mode & 0o7777
        path = path + file.name if path.endswith("/") else path
    session.client.write_file(session.vm(vm), path, data, own if bits is None else bits)
    session.show(
        {"bytes": len(data), "vm": vm, "path": path}, lambda: session.out.note(f"{size(len(data))} to {vm}:{path}")
    )


def _copy_out(session: Session, vm: str, path: str, target: str) -> None:
    chunks = session.client.read_file(session.vm(vm), path)
    if target == "-":
        for chunk in chunks:
            session.out.raw(chunk)
        return
    file = Path(target).expanduser()
    if file.is_dir() or target.endswith("/"):
        file = file / Path(path).name
    part = file.with_name(f".{file.name}.part")
    count = 0
    try:
        with part.open("wb") as sink:
            for chunk in chunks:
                count += sink.write(chunk)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    session.show({"bytes": count, "vm": vm, "path": path}, lambda: session.out.note(f"{size(count)} to {file}"))


def console(
    session: Session,
    vm: Vm,
    log: Annotated[bool, typer.Option("--log", help="Print what the console has shown, and end.")] = False,
    max_bytes: Annotated[int, typer.Option("--bytes", metavar="N", help="How much of it.")] = SCROLLBACK_BYTES,
) -> None:
    """Talk to a VM's serial console: what it showed last, then live. Ctrl-] ends it."""
    from ramet.cli import bridge

    client = session.client
    scrollback = client.console_log(session.vm(vm), max_bytes)
    if log:
        session.out.raw(scrollback)
        return
    stream = client.open_stream("console", vm)
    with stream:
        session.out.note(f"Console of {vm}; Ctrl-] ends it.")
        session.out.raw(scrollback)
        with bridge.raw_terminal(sys.stdin.fileno()):
            bridge.stdio(stream, sys.stdin.fileno(), sys.stdout.fileno(), bridge.escape_at(ESCAPE))
    if session.out.terminal:
        session.out.raw(b"\n", error=True)  # the guest's line ends here
    session.out.note("Console left.")


def screenshot(
    session: Session,
    vm: Vm,
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="Default: VM.png; - for stdout.")] = None,
) -> None:
    """Save what a VM's display shows, as PNG."""
    from ramet.errors import UsageError

    if file == "-" and session.out.terminal:
        raise UsageError("A picture cannot be printed on a terminal.", hint="Give a file name, or pipe it.")
    data = session.client.screenshot(session.vm(vm))
    if file == "-":
        session.out.raw(data)
        return
    path = Path(file or f"{vm}.png").expanduser()
    path.write_bytes(data)
    session.show({"file": str(path), "bytes": len(data)}, lambda: session.out.say(Cell(str(path), "bold")))


def ssh(
    session: Session,
    vm: Annotated[str, typer.Argument(metavar="[USER@]VM", help="Default user: root.", autocompletion=complete.vms)],
    args: Annotated[list[str] | None, typer.Argument(metavar="ARGS...", help="Options of ssh and a command.")] = None,
    identity: Annotated[str | None, typer.Option("--identity", "-i", metavar="FILE", help="Private key.")] = None,
) -> None:
    """Log in to a guest with the ssh you have, through the daemon: no route to the guest is needed."""
    import shutil

    from ramet.errors import UnsupportedError

    user, _, name = vm.rpartition("@")
    view = session.client.show_vm(session.vm(name))
    session.client.address_of(view.id)
    ssh_path = shutil.which("ssh")
    if ssh_path is None:
        raise UnsupportedError("There is no ssh on this host.", hint="Install it: apt install openssh-client.")
    argv = ssh_argv(ssh_path, session.state_dir, view, user or "root", identity, args or [])
    session.client.close()
    sys.stdout.flush()
    os.execv(ssh_path, argv)


def ssh_argv(ssh: str, state_dir: Path, vm: VmView, user: str, identity: str | None, args: list[str]) -> list[str]:
    """ssh by a tunnel, host keys remembered under the VM's id: names and addresses of clones come and go."""
    import shlex

    def percent(text: str) -> str:
        return text.replace("%", "%%")  # ssh puts the host's name for %h, and so on

    options = {
        "ProxyCommand": percent(shlex.join([*program(), "--state", str(state_dir), "_tunnel", vm.id, "22"])),
        "HostKeyAlias": vm.id,
        "UserKnownHostsFile": percent(f'"{state_dir / "known_hosts"}"'),
        "StrictHostKeyChecking": "accept-new",
        "LogLevel": "ERROR",
    }
    flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    key = ["-i", identity] if identity else []
    return [ssh, *flags, *key, "-l", user, vm.name, *(args[1:] if args[:1] == ["--"] else args)]


def tunnel(
    session: Session,
    vm: Vm,
    port: Annotated[int, typer.Argument(metavar="PORT", min=1, max=65535)],
) -> None:
    """Carry stdin and stdout to a TCP port of a guest; what ssh's ProxyCommand runs."""
    from ramet.cli import bridge

    with session.client.open_stream("tcp", vm, port) as stream:
        bridge.stdio(stream)


def forward(
    session: Session,
    vm: Vm,
    ports: Annotated[str, typer.Argument(metavar="HOSTPORT:GUESTPORT", help="Like 8080:80; 0:80 takes any free port.")],
    bind: Annotated[
        str, typer.Option("--bind", metavar="ADDRESS", help="Address of this host to listen on.")
    ] = "127.0.0.1",
) -> None:
    """Lead a port of this host into a guest: every connection is carried there, until Ctrl-C."""
    from ramet.cli import parsing
    from ramet.cli.forward import Forwarder

    host_port, guest_port = parsing.ports(ports)
    view = session.client.show_vm(session.vm(vm))
    client = session.client
    forwarder = Forwarder(bind, host_port, lambda: client.open_stream("tcp", view.id, guest_port), session.out.warn)
    host, port = forwarder.address
    session.show(
        {"listen": f"{host}:{port}", "vm": view.name, "port": guest_port},
        lambda: session.out.say(
            f"{host}:{port} leads to port {guest_port} of ", Cell(view.name, "bold"), "; Ctrl-C ends it."
        ),
    )
    try:
        forwarder.serve()
    except KeyboardInterrupt:
        session.out.note("Closed.")
    finally:
        forwarder.close()
