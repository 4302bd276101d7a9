"""What measurements do inside their guest."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from ramet.host.service import Host
from ramet.model.requests import Exec

_WRITER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int c, char **v) {
  size_t n = (size_t)atoi(v[c - 1]) << 8; volatile unsigned char *p = malloc(n * 4096); unsigned r = 1;
  for (size_t i = 0; i < n; i++) p[i * 4096] = 7;
  for (unsigned k = 0;; k++, usleep(20000)) {
    for (int j = 0; j < 200; j++) r = r * 1664525 + 1013904223, p[(r >> 4) % n * 4096 + 8] ^= 1;
    if (k == 0) { printf("tick\n"); fflush(stdout); }
  }
}
"""
"""10,000 random page writes a second."""


def memory_writer(directory: Path) -> Path:
    """A static program that keeps rewriting memory at random; its argument is MiB."""
    (directory / "writer.c").write_text(_WRITER)
    cc = os.environ.get("CC", "cc")
    subprocess.run([cc, "-O2", "-static", "-o", "writer", "writer.c"], cwd=directory, check=True)
    return directory / "writer"


async def shell(host: Host, name: str, script: str) -> None:
    """Run a script in the guest. Raises RuntimeError when it fails."""
    result = await host.exec_in_vm(name, Exec(argv=("/bin/sh", "-c", script), timeout_s=120))
    if result.exit_code != 0:
        raise RuntimeError(f"{script!r} ended with {result.exit_code} in {name}")


async def write_file(host: Host, name: str, source: Path, target: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield source.read_bytes()

    await host.write_file(name, target, chunks(), 0o755)
