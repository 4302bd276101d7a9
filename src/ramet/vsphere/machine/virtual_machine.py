"""VirtualMachine, put together: what can be read of it, and what can be done with it."""

from __future__ import annotations

from ramet.vsphere.machine.operations_answer import AnswerOperations
from ramet.vsphere.machine.operations_clone import CloneOperations
from ramet.vsphere.machine.operations_config import ConfigOperations
from ramet.vsphere.machine.operations_console import ConsoleOperations
from ramet.vsphere.machine.operations_customize import CustomizeOperations
from ramet.vsphere.machine.operations_life import LifeOperations
from ramet.vsphere.machine.operations_power import PowerOperations
from ramet.vsphere.machine.properties import MachineProperties


class VirtualMachine(
    PowerOperations,
    CloneOperations,
    ConfigOperations,
    CustomizeOperations,
    LifeOperations,
    ConsoleOperations,
    AnswerOperations,
    MachineProperties,
):
    """One VM of the host."""
