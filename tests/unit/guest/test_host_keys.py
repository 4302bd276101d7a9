"""Host keys that are made for a guest: what OpenSSH's own program says of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ramet.guest.host_keys import new_host_key


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_openssh_reads_the_key_and_tells_the_same_of_it(tmp_path: Path) -> None:
    key, file = new_host_key(), tmp_path / "key"
    file.write_text(key.private + "\n")
    file.chmod(0o600)
    public = subprocess.run(["ssh-keygen", "-y", "-f", file], capture_output=True, text=True, check=True).stdout
    assert public.split()[:2] == key.public.split()
    shown = subprocess.run(["ssh-keygen", "-lf", file], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] == key.fingerprint


def test_each_is_another() -> None:
    assert len({new_host_key().fingerprint for _ in range(20)}) == 20
