"""com.vmware.vcenter.vm.console.tickets: the way to a VM's display."""

from __future__ import annotations

from typing import Literal

from ramet.vsphere.machine.operations_console import WEBMKS
from ramet.vsphere.rest.asking import Ask
from ramet.vsphere.rest.structs import Struct
from ramet.vsphere.rest.table import Operation
from ramet.vsphere.rest.vm import vm_of

_TICKETS = "com.vmware.vcenter.vm.console.tickets"
_KINDS = {"WEBMKS": WEBMKS, "VMRC": "mks"}


class CreateSpec(Struct):
    vapi = f"{_TICKETS}.create_spec"
    type: Literal["VMRC", "WEBMKS"]


class TicketSummary(Struct):
    vapi = f"{_TICKETS}.summary"
    ticket: str


async def create_ticket(ask: Ask, vm: str, spec: CreateSpec) -> TicketSummary:
    made = await ask.do(vm_of(ask, vm), "AcquireTicket", ticketType=_KINDS[spec.type])
    return TicketSummary(ticket=made.url)


OPERATIONS = (
    Operation.of(_TICKETS, "create", "POST", "/vcenter/vm/{vm}/console/tickets", create_ticket, created=True),
)
