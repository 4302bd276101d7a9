"""Ramet: instant clones of running virtual machines, on Linux and stock QEMU."""

__version__ = "0.1.0"
