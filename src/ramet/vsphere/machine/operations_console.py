"""Tickets to a VM's display, and pictures of it."""

from __future__ import annotations

from typing import Any

from ramet.host.tasks import TaskHandle
from ramet.model.host import Task
from ramet.model.machine import Display
from ramet.vsphere import ids
from ramet.vsphere.access.address import address_of, asked_at
from ramet.vsphere.console.app import url_of
from ramet.vsphere.console.consoles import Consoles
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.core.properties import value_at
from ramet.vsphere.machine import screenshots
from ramet.vsphere.machine.long_work import run
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
        self._require_display()
        with refusing(self, "poweredOn"):
            secret = self.world.part(Consoles).ticket(self, self.vm_id, call)
        return self._ticket(call, secret)

    @operation("CreateScreenshot_Task")
    async def create_screenshot(self, call: Call) -> Any:
        """Its result is the datastore path of a PNG, which GET of `/folder` reads."""
        self._require_display()
        kept: list[str] = []

        async def work(_: TaskHandle) -> None:
            kept.append(await screenshots.keep(self.host, self.vm_id))

        async def result(_: Task) -> str:
            return f"[{ids.DATASTORE_NAME}] vms/{self.vm_id}/{kept[0]}"

        return await run(self, call, "CreateScreenshot_Task", work, vm_id=self.vm_id, result=result)

    def _require_display(self) -> None:
        record = self.record
        if record.machine.display is Display.NONE:
            raise vim.fault.InvalidState(msg=f"{record.name!r} has no display: one is given to a VM when it is made.")
        with refusing(self, "poweredOn"):
            self.live.require_process()

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
