"""All operations of the automation API: REST, JSON-RPC and the reference are made from this one table."""

from __future__ import annotations

from ramet.vsphere.rest import cis, console, guest, hardware, places, vm
from ramet.vsphere.rest.table import Table

__all__ = ["TABLE"]

TABLE = Table(
    (
        *cis.OPERATIONS, *vm.OPERATIONS, *hardware.OPERATIONS, *console.OPERATIONS, *guest.OPERATIONS,
        *places.OPERATIONS,
    )
)  # fmt: skip
