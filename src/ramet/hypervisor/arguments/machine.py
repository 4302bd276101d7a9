"""Board, processors, accelerator, clock, and how a reset or a power-off ends."""

from __future__ import annotations

from ramet.hypervisor.arguments.options import listed
from ramet.hypervisor.version import Qemu
from ramet.model.machine import Accelerator, Machine

TCG_BUFFER_MIB = 64
"""Translated code, private to each QEMU and filled as the guest runs. Measured on the boot of a Debian kernel: 32 takes
8 % more work and 36 MiB less memory, 16 a quarter more work; above 64 nothing is gained. QEMU's default is 1 GiB. A
clone, which has booted, gets what the setting clone_buffer_mib says."""

TCG_CPU = "qemu64"
"""An AMD model, which guests take for free of Meltdown: no page table isolation, which is dear to emulate."""

# Together with qemu64 these make x86-64-v2, which current distributions are built for. All are emulated by QEMU 7.2;
# five-level paging (la57), which "max" would bring, is not among them.
_TCG_FEATURES = ("ssse3=on", "sse4.1=on", "sse4.2=on", "popcnt=on", "svm=off")


def cpu_model(machine: Machine, qemu: Qemu, accelerator: Accelerator) -> str:
    """The processor that the guest sees, with the features that are set explicitly."""
    if machine.cpu_model is not None:
        return machine.cpu_model
    if accelerator is Accelerator.KVM:
        return qemu.kvm_cpu
    return ",".join((TCG_CPU, *_TCG_FEATURES))


def board(machine: Machine, qemu: Qemu, *, flash: dict[str, str]) -> list[str]:
    """``-machine`` and ``-smp``. `flash`: names of the block nodes of the firmware, none for BIOS."""
    return [
        *listed(
            "-machine",
            machine.machine_type or qemu.default_machine_type,
            memory_backend="ram",
            usb="off",
            smm="off",
            sata="off",
            hpet="off",
            vmport="off",
            mem_merge="off",
            dump_guest_core="off",
            **flash,
        ),
        *listed("-smp", cpus=machine.vcpus, sockets=1, cores=machine.vcpus, threads=1),
    ]


def processor(machine: Machine, qemu: Qemu, accelerator: Accelerator, buffer_mib: int = TCG_BUFFER_MIB) -> list[str]:
    """`buffer_mib`: room for translated code under emulation."""
    if accelerator is Accelerator.KVM:
        accel = ["-accel", "kvm"]
    else:
        accel = listed("-accel", "tcg", thread="multi", tb_size=buffer_mib)
    return [*accel, "-cpu", cpu_model(machine, qemu, accelerator)]


def clock() -> list[str]:
    """The RTC follows the host's clock: a clone of a long frozen source reads the right time from it."""
    return listed("-rtc", base="utc", clock="host", driftfix="none")


def endings(machine: Machine) -> list[str]:
    """A guest booted from its disk resets in place. One booted from a kernel of ours needs QEMU to load it again: it
    ends instead, with the reason guest-reset in its SHUTDOWN event, and is launched anew."""
    return listed("-action", reboot="shutdown" if machine.kernel else "reset", shutdown="poweroff")
