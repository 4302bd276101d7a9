"""A cloud-init seed: the NoCloud data source's two files on a small CD image, which cloud images read at first boot."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ramet.errors import UsageError
from ramet.guest.iso9660 import cd_image

LABEL = "CIDATA"
_MAX_USER_DATA_BYTES = 1 << 20
# The type, base64 (of a length first, whose upper bytes are zero), a comment; one line, or a key could bring more in.
_KEY = re.compile(r"^(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ AAAA[A-Za-z0-9+/]*=*( [^\x00-\x1f\x7f]*)?$")


def check_ssh_key(key: str) -> str:
    """A public key as in an authorized_keys file, without options; `UsageError` if it is not one."""
    key = key.strip()
    if not _KEY.match(key) or len(key) > 16384:
        raise UsageError(
            "That is not a public SSH key.", hint="It is one line like 'ssh-ed25519 AAAA… name', from a file *.pub."
        )
    return key


def user_data(ssh_keys: Sequence[str]) -> str:
    """A #cloud-config that lets the keys' holders in, as the image's default user and as root."""
    keys = json.dumps([check_ssh_key(key) for key in ssh_keys])  # JSON is YAML
    root = f"users:\n  - default\n  - name: root\n    ssh_authorized_keys: {keys}\n" if ssh_keys else ""
    return f"#cloud-config\nssh_authorized_keys: {keys}\ndisable_root: false\n{root}"


def seed_iso(instance_id: str, hostname: str, *, ssh_keys: Sequence[str] = (), more: str | None = None) -> bytes:
    """The CD image. `more` replaces the generated user-data ("#cloud-config", "#!/bin/sh" or any cloud-init kind).

    The same arguments give the same bytes. A clone needs a seed with another `instance_id` only if it shall run
    cloud-init's first boot again.
    """
    if more is not None and ssh_keys:
        raise UsageError("Give either user-data or SSH keys.", hint="Put the keys into the user-data.")
    data = more if more is not None else user_data(ssh_keys)
    if len(data.encode()) > _MAX_USER_DATA_BYTES:
        raise UsageError("The user-data is larger than 1 MiB.")
    meta = json.dumps({"instance-id": instance_id, "local-hostname": hostname}) + "\n"
    return cd_image(LABEL, {"meta-data": meta.encode(), "user-data": data.encode()})


def write_seed(
    path: Path, instance_id: str, hostname: str, *, ssh_keys: Sequence[str] = (), more: str | None = None
) -> None:
    """Blocking. `seed_iso` into a file, by a rename."""
    content = seed_iso(instance_id, hostname, ssh_keys=ssh_keys, more=more)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.rename(path)
