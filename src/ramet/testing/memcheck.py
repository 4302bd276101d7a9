"""A program for guests that keeps writing to its memory and checks it: one wrong page in a clone says BAD."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ramet.errors import ToolError

SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
/* Keeps rewriting pages at random, and checks a sum over all of them: one wrong page in a clone says BAD. */
int main(int c, char **v) {
  size_t n = (size_t)atoi(v[c - 1]) << 8; volatile unsigned char *p = malloc(n * 4096); unsigned r = 1;
  for (size_t i = 0; i < n; i++) p[i * 4096] = 7, p[i * 4096 + 8] = 0;
  for (unsigned k = 0;; k++, usleep(20000)) {
    for (int j = 0; j < 200; j++) r = r * 1664525 + 1013904223, p[(r >> 4) % n * 4096 + 8] ^= 1;
    if (k % 20) continue;
    size_t s = 0; for (size_t i = 0; i < n; i++) s += p[i * 4096];
    printf("tick %u %s\n", k, s == 7 * n ? "OK" : "BAD"); fflush(stdout);
  }
}
"""


def build(directory: Path) -> Path:
    """Compile it, static, so that any guest can run it: ``memcheck MIB``. Raises ToolError."""
    (directory / "memcheck.c").write_text(SOURCE)
    argv = [os.environ.get("CC", "cc"), "-O2", "-static", "-o", "memcheck", "memcheck.c"]
    try:
        subprocess.run(argv, cwd=directory, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ToolError("The memory checker could not be compiled.", hint="It needs a C compiler; see CC.") from exc
    return directory / "memcheck"
