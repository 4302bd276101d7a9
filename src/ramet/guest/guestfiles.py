"""Reach what is copied into guests, from a source tree and from an installed package alike."""

from __future__ import annotations

import hashlib
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


HELPER_FOLDER = "/var/lib/ramet"
"""Where the identity script looks for it."""
