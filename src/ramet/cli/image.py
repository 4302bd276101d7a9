"""``ramet image``: what VMs start from."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ramet.cli import complete
from ramet.cli.command import command, group
from ramet.cli.output import Cell
from ramet.cli.session import Session, run_all

app = group(
    "image",
    "Build, import, list and remove images.",
    examples=("ramet image build debian", "ramet image import disk.qcow2"),
)

Recipe = Literal["debian", "micro"]
Firmware = Literal["bios", "uefi"]


@command(
    app,
    "build",
    examples=(
        "ramet image build debian",
        "ramet image build micro",
        "ramet image build debian --name web --package nginx --size 8G",
    ),
)
def build(
    session: Session,
    recipe: Annotated[
        Recipe,
        typer.Argument(metavar="debian|micro", help="Debian with systemd, agent and sshd; or kernel and busybox."),
    ],
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Default: the recipe's.")] = None,
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="Of the disk.")] = "4G",
    package: Annotated[
        list[str] | None, typer.Option("--package", metavar="NAME", help="A further Debian package.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again when it is there already.")] = False,
) -> None:
    """Build an image from this machine's own apt sources: Debian in about a minute, micro in seconds."""
    from ramet.cli import parsing
    from ramet.model.requests import BuildImage
    from ramet.model.units import parse_size_mib

    fields = {
        "recipe": recipe,
        "name": name,
        "size_mib": parse_size_mib(size),
        "packages": tuple(package or ()),
        "force": force,
    }
    session.settle(session.client.build_image(parsing.request(BuildImage, fields)))
    _made(session, name or recipe, "built")


@command(
    app,
    "import",
    examples=("ramet image import debian-12.qcow2", "ramet image import win.vmdk --name win --firmware uefi"),
)
def import_(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A qcow2, raw or vmdk file.")],
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Default: the file's name.")] = None,
    firmware: Annotated[Firmware, typer.Option("--firmware", metavar="bios|uefi", help="What it boots with.")] = "bios",
) -> None:
    """Copy a disk of another system in, as an image."""
    from pathlib import Path

    from ramet.cli import parsing
    from ramet.model.requests import ImportImage

    path = Path(file).expanduser().absolute()
    known = {image.name for image in session.client.list_images()}
    session.settle(
        session.client.import_image(
            parsing.request(ImportImage, {"path": str(path), "name": name, "firmware": firmware})
        )
    )
    added = [image.name for image in session.client.list_images() if image.name not in known]
    _made(session, name or (added[0] if added else path.stem), "imported")


@command(app, "ls", examples=("ramet image ls",))
def ls(session: Session) -> None:
    """List all images."""
    from ramet.cli import render

    images = session.client.list_images()
    session.show(images, lambda: render.images(session.out, images, session.now()))


@command(app, "rm", examples=("ramet image rm micro",))
def rm(
    session: Session,
    image: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Names.", autocompletion=complete.images)],
) -> None:
    """Remove images. VMs made from them keep what they need."""

    def remove(name: str) -> dict[str, str]:
        session.named.append(("image", name))
        session.client.remove_image(name)
        session.out.say(Cell(name, "bold"), " removed")
        return {"removed": name}

    run_all(session, image, remove)


def _made(session: Session, name: str, done: str) -> None:
    image = next((image for image in session.client.list_images() if image.name == name), None)
    session.show(image, lambda: session.out.say(Cell(name, "bold"), f" {done}"))
