"""A program for guests that keeps rewriting their memory at random: 10,000 pages a second."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from ramet.bench.shell import Shell
from ramet.errors import UnsupportedError

_SOURCE = r"""
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
_COMPILE_S = 60.0


def writer() -> bytes:
    """A static program for any Linux guest; its argument is MiB. UnsupportedError where there is no compiler."""
    with tempfile.TemporaryDirectory(prefix="ramet-writer-") as name:
        folder = Path(name)
        (folder / "writer.c").write_text(_SOURCE)
        argv = [os.environ.get("CC", "cc"), "-O2", "-static", "-o", "writer", "writer.c"]
        try:
            subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=_COMPILE_S)
        except (OSError, subprocess.CalledProcessError) as exc:
            raise UnsupportedError(
                "The program that keeps a guest busy cannot be compiled here.",
                hint="Install a C compiler: apt-get install gcc libc6-dev.",
            ) from exc
        return (folder / "writer").read_bytes()


def make_busy(shell: Shell, busy_mib: int) -> None:
    """Returns once so much of the guest's memory is filled; from then on it is rewritten."""
    shell.write("/run/writer", writer())
    shell.run(f"chmod 755 /run/writer; cp /run/writer /bin/writer; (/bin/writer {busy_mib} >/run/ticks 2>&1 &)")
    shell.run("until grep -q tick /run/ticks; do sleep 0.1; done")
