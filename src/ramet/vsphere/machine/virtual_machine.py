"""VirtualMachine, put together: what can be read of it, and what can be done with it."""

from __future__ import annotations

from ramet.vsphere.machine.properties import MachineProperties


class VirtualMachine(MachineProperties):
    """One VM of the host."""
