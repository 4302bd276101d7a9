"""Serial console, guest channels and monitors: sockets that the daemon has bound."""

from __future__ import annotations

from ramet.hypervisor.arguments import pci
from ramet.hypervisor.arguments.options import json_option, listed

AGENT_PORT = "org.qemu.guest_agent.0"
RPC_PORT = "org.ramet.rpc.0"


def socket_chardev(name: str, fd: int, **more: str | int) -> list[str]:
    """A listening socket; QEMU takes one connection at a time and does not wait for the first."""
    return listed("-chardev", "socket", id=name, fd=fd, server="on", wait="off", **more)


def monitor(name: str, fd: int) -> list[str]:
    return [*socket_chardev(name, fd), *listed("-mon", chardev=name, mode="control")]


def event_log() -> list[str]:
    """A monitor on standard input and output that only reports (see `LaunchPlan.stdio`)."""
    return [
        *listed("-chardev", "stdio", id="events", signal="off"),
        *listed("-mon", chardev="events", mode="control"),
    ]


def console(fd: int, log_set: int) -> list[str]:
    """The first serial port. What the guest writes goes to the log too, connected or not."""
    return [
        *socket_chardev("console", fd, logfile=f"/dev/fdset/{log_set}", logappend="on"),
        *json_option("-device", {"driver": "isa-serial", "id": "serial0", "index": 0, "chardev": "console"}),
    ]


def guest_channels(agent_fd: int, rpc_fd: int) -> list[str]:
    """The two named ports that programs in the guest open under /dev/virtio-ports."""
    controller = {"driver": "virtio-serial-pci", "id": "channels", "max_ports": 4, **pci.root_slot(pci.CHANNELS)}
    argv = json_option("-device", controller)
    for number, (name, port, fd) in enumerate((("agent", AGENT_PORT, agent_fd), ("rpc", RPC_PORT, rpc_fd)), start=1):
        argv += socket_chardev(name, fd)
        argv += json_option(
            "-device",
            {
                "driver": "virtserialport",
                "id": f"channel-{name}",
                "bus": "channels.0",
                "nr": number,
                "name": port,
                "chardev": name,
            },
        )
    return argv
