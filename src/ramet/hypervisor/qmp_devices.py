"""Devices of a running guest: links, and NICs and disks plugged in and out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ramet.errors import DeadlineError, QemuError, UnsupportedError
from ramet.hypervisor.arguments import disks, nics, pci
from ramet.hypervisor.blocknodes import DiskChain
from ramet.hypervisor.qmp_executor import Executor
from ramet.model.machine import Nic


class DeviceCommands(Executor):
    async def set_link(self, nic_id: str, up: bool) -> None:
        """Plug the cable of a NIC in or out; the guest sees its carrier change."""
        await self.execute("set_link", {"name": nic_id, "up": up})

    async def hotplug_nic(self, nic: Nic, tap_fd: int | None) -> None:
        """Add a NIC to the running guest, on a tap (QEMU gets a copy; `tap_fd` stays the caller's) or on user mode.

        Raises UnsupportedError beyond net3, which have no hot-plug slot. Leaves nothing behind on failure.
        """
        _check_slot(nic.id, nic.index, pci.HOTPLUG_NICS, "added", "add the NIC")
        name = None
        if tap_fd is not None:
            name = f"tap-{nic.id}"
            await self.execute_with_fd(tap_fd, "getfd", {"fdname": name})
        try:
            await self.execute("netdev_add", nics.netdev(nic.id, name))
        except QemuError:
            if name is not None:
                await self.execute("closefd", {"fdname": name})
            raise
        try:
            await self.execute("device_add", nics.device(nic))
        except BaseException:
            await self.execute("netdev_del", {"id": nics.netdev_id(nic.id)})
            raise

    async def unplug_nic(self, nic_id: str, timeout_s: float = 15.0) -> None:
        """Take a NIC out of the running guest. The guest has to agree: raises DeadlineError when it does not, and
        UnsupportedError beyond net3, whose port would stay in the source alone and not be in its clones."""
        _check_slot(nic_id, int(nic_id.removeprefix("net")), pci.HOTPLUG_NICS, "removed", "remove the NIC")
        await self.unplug_device(nic_id, timeout_s)
        await self.execute("netdev_del", {"id": nics.netdev_id(nic_id)})

    async def hotplug_disk(self, chain: DiskChain) -> None:
        """Add a disk, whose nodes are there already (`add_chain`), to the running guest. See `hotplug_nic`."""
        disk_id = chain.disk.id
        _check_slot(disk_id, chain.disk.index, pci.HOTPLUG_DISKS, "added", "add the disk")
        await self.execute("device_add", disks.device(chain))

    async def unplug_device(self, device_id: str, timeout_s: float = 15.0) -> None:
        """Take a device out of the running guest; its backend stays. Raises DeadlineError when the guest ignores it,
        QemuError when it refuses."""
        with self.events("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR") as events:
            with suppress(_AlreadyAskedError):
                await self._ask_unplug(device_id)
            try:
                while event := await events.next(timeout_s):
                    if event["data"].get("device") == device_id:
                        break
            except DeadlineError as exc:
                raise DeadlineError(f"The guest did not give {device_id} back within {timeout_s:g} s.") from exc
        if event is None:
            raise QemuError(f"QEMU ended before the guest gave {device_id} back.")
        if event["event"] == "DEVICE_UNPLUG_GUEST_ERROR":
            raise QemuError(f"The guest refused to give {device_id} back.")

    async def _ask_unplug(self, device_id: str) -> None:
        try:
            await self.execute("device_del", {"id": device_id})
        except QemuError as exc:
            if "already in the process of unplug" in exc.message:
                raise _AlreadyAskedError(exc.message) from exc
            raise

    async def device_ids(self) -> frozenset[str]:
        """Of the devices that were given one: NICs and disks, plugged in at birth or later."""
        answer = await self.execute("qom-list", {"path": "/machine/peripheral"})
        return frozenset(str(item.get("name")) for item in answer)

    async def is_listening(self, channel: str) -> bool:
        """Whether a program in the guest holds a channel's port open: "agent" or "rpc"."""
        chardevs = await self.execute("query-chardev")
        return any(chardev["label"] == channel and chardev["frontend-open"] for chardev in chardevs)

    async def query_pci(self) -> list[dict[str, Any]]:
        """The PCI buses as the guest's firmware set them up."""
        answer: list[dict[str, Any]] = await self.execute("query-pci")
        return answer


class _AlreadyAskedError(QemuError):
    """An earlier request is still with the guest; its answer serves this one too."""


def _check_slot(device_id: str, index: int, slots: int, done: str, remedy: str) -> None:
    if index >= slots:
        raise UnsupportedError(
            f"{device_id} cannot be {done} while the VM runs: only the first {slots} of a kind can.",
            hint=f"Stop the VM, then {remedy}.",
        )
