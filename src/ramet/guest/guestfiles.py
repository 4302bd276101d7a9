"""Reach what is copied into guests, from a source tree and from an installed package alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import resources


def guest_file(name: str) -> bytes:
    """The content of a file below ramet/guest/files, like 'vmware-rpctool' or 'micro/start'."""
    return resources.files("ramet.guest").joinpath("files", *name.split("/")).read_bytes()


def guest_helper() -> bytes:
    """The program that the identity script brings along, built with the package; empty if there was no C compiler."""
    try:
        return resources.files("ramet").joinpath("_native", "guest-helper").read_bytes()
    except FileNotFoundError:
        return b""


def helper_name(helper: bytes) -> str:
    """What that program is called in guests: never written over by another version."""
    return f"helper-{hashlib.sha256(helper).hexdigest()[:12]}"


def identity_script() -> bytes:
    """What makes a clone a machine of its own: two files, of which the first only defines."""
    return guest_file("identity-network") + guest_file("identity")


def identity_script_name(script: bytes) -> str:
    """What it is called in guests that have it."""
    return f"identity-{hashlib.sha256(script).hexdigest()[:12]}"


HELPER_FOLDER = "/var/lib/ramet"
"""Where guests have both of these, or get the helper."""


def identity_files() -> Iterator[tuple[str, bytes]]:
    """(Path, content) of what spares a guest to be sent it with each identity; for root alone, and executable."""
    script, helper = identity_script(), guest_helper()
    yield f"{HELPER_FOLDER}/{identity_script_name(script)}", script
    if helper:
        yield f"{HELPER_FOLDER}/{helper_name(helper)}", helper
