"""qemu-img as it is used here: formats always named, backing never followed unasked, progress parsed, errors told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramet.errors import BusyError, CapacityError, DamagedError, ToolError
from ramet.storage.layers import Layer, LayerStore
from ramet.storage.runner import Limits, Progress, ToolResult, run_tool

CONVERT_TIMEOUT_S = 6 * 3600.0
LOOK_TIMEOUT_S = 60.0
"""For what only reads metadata."""

SUSPICIOUS = Limits(address_space_bytes=4 << 30, cpu_s=30)
"""For a first look at a file from anywhere."""
BACKGROUND = Limits(address_space_bytes=4 << 30, background=True)

_PERCENT = re.compile(rb"\((\d{1,3}\.\d+)/100%\)")

Node = dict[str, Any]
"""A block device description, as in QEMU's -blockdev."""


@dataclass(frozen=True, slots=True)
class Info:
    """What ``qemu-img info`` found."""

    format: str
    size_bytes: int
    backing_name: str | None
    encrypted: bool
    data_file: str | None


class PercentParser:
    """Turns the stream that ``qemu-img -p`` draws into calls of `tell`, scaled to the range `start`…`end`."""

    def __init__(self, tell: Progress | None, start: float = 0.0, end: float = 100.0) -> None:
        self._tell, self._start, self._span = tell, start, end - start
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        self._rest += chunk
        matches = list(_PERCENT.finditer(self._rest))
        self._rest = self._rest[matches[-1].end() if matches else 0 :][-64:]
        if matches and self._tell is not None:
            self._tell(self._start + self._span * min(float(matches[-1][1]), 100.0) / 100.0)


def file_node(path: Path | str) -> Node:
    return {"driver": "file", "filename": str(path)}


def alone_node(driver: str, path: Path | str) -> Node:
    """One file without whatever backing file its header may name."""
    node: Node = {"driver": driver, "file": file_node(path)}
    return node if driver == "raw" else {**node, "backing": None}


def chain_node(store: LayerStore, chain: Sequence[Layer]) -> Node:
    """A whole chain, topmost first, with every file named from here rather than by the headers."""
    node: Node | None = None
    for layer in reversed(chain):
        node = {"driver": "qcow2", "file": file_node(store.path(layer.id)), "backing": node}
    assert node is not None
    return node


async def info(node: Node | Path, *, pass_fds: Sequence[int] = ()) -> Info:
    """Look at a file under tight limits. A Path is probed for its format; a node names it.

    Raises DamagedError when QEMU cannot open it as that, DeadlineError.
    """
    argv = ["qemu-img", "info", "-U", "--output=json", str(node) if isinstance(node, Path) else _json(node)]
    try:
        result = await run_tool(argv, timeout_s=LOOK_TIMEOUT_S, limits=SUSPICIOUS, pass_fds=pass_fds)
        data = json.loads(result.stdout)
        specific = (data.get("format-specific") or {}).get("data") or {}
        return Info(
            format=str(data["format"]),
            size_bytes=int(data["virtual-size"]),
            backing_name=data.get("backing-filename") or data.get("full-backing-filename"),
            encrypted=bool(data.get("encrypted")) or "encrypt" in specific,
            data_file=specific.get("data-file"),
        )
    except ToolError as exc:
        raise DamagedError(f"QEMU cannot read it: {exc.message}") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DamagedError("QEMU says nothing sensible about it.") from exc


async def measure_bytes(node: Node, *, pass_fds: Sequence[int] = ()) -> int:
    """What a qcow2 with the contents of `node` would take on disk, at most."""
    argv = ["qemu-img", "measure", "--output=json", "-O", "qcow2", _json(node)]
    # A large raw file's holes are asked for one by one, so more patience than for a look at the metadata.
    limits = Limits(address_space_bytes=4 << 30, cpu_s=600)
    result = await told(run_tool(argv, timeout_s=900, limits=limits, pass_fds=pass_fds))
    return int(json.loads(result)["required"])


async def convert(
    node: Node,
    target: Path,
    target_format: str,
    *,
    report: Callable[[bytes], None] | None,
    options: str | None = None,
    pass_fds: Sequence[int] = (),
    timeout_s: float = CONVERT_TIMEOUT_S,
) -> None:
    """Write the contents of `node` to a new file, which the caller removes on failure and syncs on success."""
    argv = ["qemu-img", "convert", "-p", "-O", target_format, *(("-o", options) if options else ())]
    argv += [_json(node), str(target)]
    await told(run_tool(argv, timeout_s=timeout_s, progress=report, limits=BACKGROUND, pass_fds=pass_fds))


async def rebase(
    path: Path, backing_name: str, *, report: Callable[[bytes], None] | None, timeout_s: float = CONVERT_TIMEOUT_S
) -> None:
    """Make `path` stand on `backing_name`, beside it, with its contents unchanged: copies what differs.

    detect-zeroes keeps ranges that were zeroed or discarded between the two as zero clusters; without it, QEMU 7.2
    writes them out.
    """
    target = f"driver=qcow2,detect-zeroes=on,file.driver=file,file.filename={_comma(str(path))}"
    argv = ["qemu-img", "rebase", "-p", "-b", backing_name, "-F", "qcow2", "--image-opts", target]
    await told(run_tool(argv, timeout_s=timeout_s, progress=report, limits=BACKGROUND))


async def resize(path: Path, size_bytes: int) -> None:
    await told(run_tool(["qemu-img", "resize", "-q", "-f", "qcow2", str(path), str(size_bytes)], timeout_s=60))


async def told(running: Coroutine[Any, Any, ToolResult]) -> bytes:
    """Wait for a tool, and put its refusals that a user can act on into our words."""
    try:
        result = await running
    except ToolError as exc:
        if "No space left on device" in exc.message or "File too large" in exc.message:
            raise CapacityError(
                "The disk became full.", hint="Nothing was left behind; make room and try again."
            ) from exc
        if "Is another process using the image" in exc.message or "Failed to get" in exc.message:
            raise BusyError("A running VM has this disk open.", hint="Stop the VM first, or clone it.") from exc
        raise
    return bytes(result.stdout)


def _json(node: Node) -> str:
    return "json:" + json.dumps(node)


def _comma(value: str) -> str:
    return value.replace(",", ",,")
