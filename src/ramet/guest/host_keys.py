"""SSH host keys for clones, made here: the guest's own ssh-keygen takes half a second of every clone's start under
emulation, most of it to find its libraries. The guest stores the key; here nothing of it is kept."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostKey:
    """One of the kind ed25519, as sshd reads it."""

    private: str
    """The file's lines, without a newline at its end."""
    public: str
    """Kind and key; a comment may follow."""

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(base64.b64decode(self.public.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def new_host_key() -> HostKey:
    """From the host's random generator."""
    # Late: 8 MB and 15 ms that a daemon without clones does not pay.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    return HostKey(
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode().strip(),
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
    )
