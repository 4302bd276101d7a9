"""``ramet vsphere``: whether vSphere clients are served, where, and how they know the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli.command import command, group
from ramet.cli.output import Cell, Output, duration
from ramet.cli.session import Session

if TYPE_CHECKING:
    from ramet.model.access import VsphereView

app = group(
    "vsphere",
    "The vSphere API on a TCP port: for the scripts, playbooks and SDKs that you have.",
    examples=("ramet vsphere on", "ramet vsphere show"),
)


@command(app, "on", examples=("ramet vsphere on", "ramet vsphere on --listen 127.0.0.1:8443"))
def on(
    session: Session,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="ADDR:PORT", help="Where; port 443 of every address if nothing is said."),
    ] = None,
) -> None:
    """Serve vSphere clients over TLS, from now on and after a restart.

    The first time an authority and a certificate are made, and an administrator, whose password is shown this once.
    """
    from ramet.model.access import SetVsphere, listen_text, parse_listen

    where = listen_text(*parse_listen(listen)) if listen else None
    view = session.client.set_vsphere(SetVsphere(on=True, listen=where))
    session.show(view, lambda: _opened(session, view))


@command(app, "off", examples=("ramet vsphere off",))
def off(session: Session) -> None:
    """Close the port; sessions end, tasks that run go on. Users and certificates stay."""
    from ramet.model.access import SetVsphere

    view = session.client.set_vsphere(SetVsphere(on=False))
    session.show(view, lambda: session.out.say("vSphere clients are no longer served"))


@command(app, "show", examples=("ramet vsphere show", "ramet vsphere show --json | jq -r .ca_file"))
def show(session: Session) -> None:
    """Show where vSphere clients are served, and the certificate that they are shown."""
    view = session.client.vsphere()
    session.show(view, lambda: _page(session.out, view, session.now()))


def _opened(session: Session, view: VsphereView) -> None:
    from ramet.cli.user import show_password

    session.out.say("vSphere clients are served at ", Cell(view.url or "", "bold"))
    session.out.facts(_how_to_reach(view, session.now()))
    if view.administrator is not None:
        show_password(session.out, view.administrator)


def _page(out: Output, view: VsphereView, now: float) -> None:
    if not view.on:
        out.line("vSphere clients are not served")
        out.note("Serve them: ramet vsphere on")
        return
    out.facts(
        [
            ("url", view.url or "not open"),
            ("listens", f"{view.listen}, by {_origin(view)}"),
            *_how_to_reach(view, now),
            ("sessions", str(view.sessions)),
        ]
    )
    if view.problem:
        out.warn(view.problem)


def _how_to_reach(view: VsphereView, now: float) -> list[tuple[str, str]]:
    left = f"{duration(view.not_after - now)} left" if view.not_after else ""
    return [
        ("browser", f"{view.url}mob" if view.url else ""),
        ("authority", view.ca_file or ""),
        ("certificate", ", ".join(filter(None, (view.certificate_file or "", left)))),
        ("fingerprint", view.fingerprint_sha256 or ""),
    ]


def _origin(view: VsphereView) -> str:
    return "the setting vsphere_listen" if view.origin == "setting" else "'ramet vsphere on'"
