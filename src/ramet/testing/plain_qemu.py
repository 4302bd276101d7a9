"""A guest under plain QEMU, without the daemon and the library: for tests of guests and of what runs in them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from ramet.guest.images.built import BuiltImage


class PlainGuest:
    """A running QEMU. `folder` has the sockets agent, rpc and qmp, and console.log."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self.process = process

    async def monitor(self, command: str) -> dict[str, Any]:
        """One QMP command without arguments, on a connection of its own."""
        reader, writer = await asyncio.open_unix_connection(self.folder / "qmp")
        try:
            for execute in ("qmp_capabilities", command):
                writer.write(json.dumps({"execute": execute}).encode())
                while not {"return", "error"} & (answer := json.loads(await reader.readline())).keys():
                    pass  # the greeting, events
        finally:
            writer.close()
        return dict(answer)

    async def wait_ended(self, timeout_s: float) -> None:
        await asyncio.wait_for(self.process.wait(), timeout_s)

    def console(self) -> str:
        return (self.folder / "console.log").read_text(errors="replace")


def _arguments(image: BuiltImage, folder: Path, memory_mib: int, more: Sequence[str]) -> list[str]:
    boot = []
    if image.disk is not None:
        kind = image.disk.suffix.removeprefix(".").replace("img", "raw")
        boot = ["-drive", f"file={image.disk},format={kind},if=virtio,cache=unsafe"]
    if image.kernel is not None:
        boot = ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append]
    channels = []
    for name, port in (("agent", "org.qemu.guest_agent.0"), ("rpc", "org.ramet.rpc.0")):
        channels += ["-chardev", f"socket,id={name},path={folder / name},server=on,wait=off"]
        channels += ["-device", f"virtserialport,chardev={name},name={port}"]
    return [
        *("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-m", str(memory_mib), "-no-user-config"),
        *("-nodefaults", "-display", "none", "-serial", f"file:{folder / 'console.log'}"),
        *("-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci", *channels, *boot, *more),
    ]


@contextlib.asynccontextmanager
async def start_plain_guest(
    image: BuiltImage, folder: Path, *more: str, memory_mib: int | None = None
) -> AsyncIterator[PlainGuest]:
    """QEMU with the image, software emulation, and arguments of one's own; killed at the end.

    Its sockets are there. The image's disk, raw or *.qcow2, is written to.
    """
    arguments = _arguments(image, folder, memory_mib or image.memory_mib, more)
    with (folder / "qemu.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(20):
            while not (folder / "qmp").exists():
                if process.returncode is not None:
                    raise RuntimeError((folder / "qemu.log").read_text())
                await asyncio.sleep(0.01)
        yield PlainGuest(folder, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
