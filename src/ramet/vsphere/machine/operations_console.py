"""Tickets to a VM's display."""

from __future__ import annotations

from typing import Any

from ramet.model.machine import Display
from ramet.vsphere.access.address import address_of, asked_at
from ramet.vsphere.console.app import url_of
from ramet.vsphere.console.consoles import Consoles
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.core.properties import value_at
from ramet.vsphere.machine.operations_base import MachineOperations
from ramet.vsphere.machine.refusals import refusing
from ramet.vsphere.types import vim, vmodl

WEBMKS = "webmks"


class ConsoleOperations(MachineOperations):
    @operation(
        "AcquireTicket",
        privilege="VirtualMachine.Interact.ConsoleInteract",
        partial="of the type webmks: RFB in a WebSocket; of a VM with a display",
    )
    async def acquire_ticket(self, call: Call, ticketType: str) -> Any:
        """Good once, for 30 s, while the session lasts. The VM is on, and has a display: else InvalidState."""
        self._check_type(ticketType)
        name = self.record.name
        if self.record.machine.display is Display.NONE:
            raise vim.fault.InvalidState(msg=f"{name!r} has no display: one is given to a VM when it is made.")
        with refusing(self, "poweredOn"):
            self.live.require_process()
            secret = self.world.part(Consoles).ticket(self, self.vm_id, call)
        return self._ticket(call, secret)

    @staticmethod
    def _check_type(kind: str) -> None:
        if kind == WEBMKS:
            return
        if kind in vim.VirtualMachine.TicketType.values:
            raise vmodl.fault.NotSupported(msg=f"There are no tickets of the type {kind!r} here. Ask for 'webmks'.")
        raise vmodl.fault.InvalidArgument(
            invalidProperty="ticketType", msg=f"There is no type {kind!r} of tickets. Ask for 'webmks'."
        )

    def _ticket(self, call: Call, secret: str) -> Any:
        host, port = asked_at(self.world, call)
        address = address_of(self.world)
        sha256 = address.sha256
        thumbprints = [vim.vm.CertThumbprint(thumbprint=sha256, hashAlgorithm="sha256")] if sha256 else []
        return vim.VirtualMachine.Ticket(
            ticket=secret,
            cfgFile=value_at(self, "config.files.vmPathName"),
            host=host,
            port=port,
            sslThumbprint=address.sha1,
            certThumbprintList=thumbprints,
            url=url_of(host, port, secret),
        )
