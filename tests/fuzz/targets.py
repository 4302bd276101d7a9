"""What is fuzzed: a function of bytes each, real bytes to begin with, and the errors that it may answer with.

A target fails by any other exception, or by an assertion about what it returned. It knows nothing of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ramet.errors import DamagedError, GuestError, RametError, UnsupportedError, UsageError
from ramet.guest import observing
from ramet.guest.agent_wire import AgentWire
from ramet.guest.identity import parse_acknowledgement
from ramet.guest.rpc import MAX_FRAME_BYTES, MAX_PENDING, GuestRpc
from ramet.host.copies import read_copies
from ramet.host.repair import salvage
from ramet.host.sqlite_store import SCHEMA, SCHEMA_VERSION
from ramet.hypervisor import qcow2_pristine
from ramet.hypervisor.devicestate import replace_macs
from ramet.hypervisor.devicestate.stream import parse as parse_state
from ramet.hypervisor.ending import read_ending
from ramet.hypervisor.plan import EVENT_LOG
from ramet.hypervisor.stun_wire import FrameDecoder, encode
from ramet.machine.paths import StatePaths
from ramet.model.host import JournalEntry
from ramet.model.machine import Moment, Vm
from ramet.network.dhcp import parse_leases
from ramet.storage import images, qcow2
from tests.fuzz import vsphere_targets as vsphere
from tests.fuzz import vsphere_web

_DATA = Path(__file__).parents[1] / "unit" / "hypervisor" / "data"


@dataclass(frozen=True)
class Target:
    """`run` is called with bytes of an enemy's; `seeds` are real ones."""

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    errors: tuple[type[Exception], ...] = (RametError,)
    is_slow: bool = False
    """Milliseconds a call rather than microseconds."""

    def call(self, data: bytes) -> None:
        """Raises what no answer is allowed to be."""
        with contextlib.suppress(*self.errors):
            self.run(data)


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


# -- from guests -------------------------------------------------------------------------------------------------------


def guest_rpc(data: bytes) -> None:
    """In pieces, as a socket brings it: what is kept for a guest is bounded, whatever it says."""
    wire = GuestRpc()
    step = 1 + (data[0] if data else 0) * 7
    for start in range(0, len(data), step):
        for request in wire.receive(data[start : start + step]):
            if len(request.text) % 3:
                wire.reply(request.id, True, request.text)
        assert len(wire.pending_ids) <= MAX_PENDING
        assert len(wire.unanswered) <= 5 * MAX_FRAME_BYTES
        if len(data) % 2:
            wire.data_to_send()
            wire.delivered()


def agent(data: bytes) -> object:
    """Answers of a guest agent, to the end of what it says."""

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        wire = AgentWire(ours)
        try:
            theirs.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                theirs.send(data)
            theirs.shutdown(socket.SHUT_WR)
            while True:
                answer = await wire.answer()
                assert ("return" in answer) != ("error" in answer)
        finally:
            wire.close()
            theirs.close()

    return asyncio.run(talk())


def observation(data: bytes) -> object:
    seen = observing.parse(data)
    return observing.changes(observing.parse(_SEEN), seen), observing.changes(seen, observing.Observation())


def acknowledgement(data: bytes) -> None:
    found = parse_acknowledgement(data)
    text = found.model_dump_json()
    assert len(text) < 1 << 20
    assert not any(ord(character) < 32 for value in found.addresses.values() for character in value)


def leases(data: bytes) -> object:
    """dnsmasq writes these, with names that guests choose."""
    return parse_leases(data.decode(errors="replace"))


# -- from QEMU ---------------------------------------------------------------------------------------------------------


def device_state(data: bytes) -> None:
    state = parse_state(data)
    assert all(0 <= one.offset <= one.offset + one.length <= len(data) for one in state.devices)


def macs(data: bytes) -> None:
    changed = replace_macs(data, {"52:54:00:aa:bb:01": "52:54:00:00:00:01", "52:54:00:aa:bb:02": "52:54:00:00:00:02"})
    assert len(changed) == len(data)


def event_log(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / EVENT_LOG).write_bytes(data)
        return read_ending(Path(folder))


def stun_frames(data: bytes) -> None:
    decoder = FrameDecoder()
    for start in range(0, len(data), 5):
        decoder.feed(data[start : start + 5])


# -- from disk ---------------------------------------------------------------------------------------------------------


def qcow2_header(data: bytes) -> None:
    with _file(data) as fd:
        header = qcow2.read_header(fd)
        assert 0 <= header.size_bytes <= qcow2.MAX_SIZE_BYTES
        qcow2.is_pristine(fd)


def qcow2_unwritten(data: bytes) -> object:
    with _file(data) as fd:
        return qcow2_pristine.is_pristine(fd)


def image_import(data: bytes) -> None:
    form = images._format_by_first_bytes(data[: 1 << 16])
    if form == "qcow2":
        with _file(data) as fd:
            images._judge_qcow2(fd)


def record(data: bytes) -> None:
    """Of the inventory and its journal."""
    for model in (Vm, Moment, JournalEntry):
        with contextlib.suppress(ValidationError):
            model.model_validate_json(data)


def record_copy(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vm").mkdir()
        (Path(folder) / "vm" / "0123456789ab.json").write_bytes(data)
        return read_copies(Path(folder))


def inventory(data: bytes) -> None:
    """A repair reads whatever there is, and never fails itself."""
    with tempfile.TemporaryDirectory() as folder:
        paths = StatePaths(Path(folder))
        paths.inventory.write_bytes(data)
        found = salvage(paths)
        assert found.problem or found.revision


# -- real bytes --------------------------------------------------------------------------------------------------------


def _states() -> list[bytes]:
    import lzma

    return [lzma.decompress(path.read_bytes()) for path in _DATA.glob("*.state.xz")]


def _qcow2s() -> list[bytes]:
    found = []
    for backing in (None, "0123456789ab-disk0.qcow2"):
        with _file(b"") as fd:
            qcow2.write_empty_overlay(fd, 1 << 20, backing)
            found.append(os.pread(fd, 1 << 20, 0))
    return found


def _frames() -> list[bytes]:
    return [b"".join(piece for piece, _ in encode({"call": "stun", "plan": [1, None, "x"]})) * 2]


def _records() -> list[bytes]:
    machine = {"name": "web", "memory_mib": 64, "disks": [{"id": "disk0", "layer": "a-disk0", "size_bytes": 1 << 20}]}
    vm = Vm.model_validate({"id": "0123456789ab", "machine": machine, "created_at": 1.0})
    entry = JournalEntry(kind="clone", vm_id=vm.id, at=1.0, detail={"layers": ["a-disk0"], "clones": ["b"]})
    return [vm.model_dump_json().encode(), entry.model_dump_json().encode()]


def _copied() -> list[bytes]:
    value = json.loads(_records()[0])
    return [json.dumps({"key": "vm/0123456789ab", "revision": 7, "value": value}).encode()]


def _databases() -> list[bytes]:
    import sqlite3

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "db"
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.executescript(f"{SCHEMA} PRAGMA user_version={SCHEMA_VERSION};")
            text = _records()[0].decode()
            database.execute("INSERT INTO entries VALUES ('vm/0123456789ab', ?, 3)", (text,))
            database.commit()
        return [path.read_bytes()]


_ANSWERS = b'{"return": {}}\n{"error": {"class": "GenericError", "desc": "no"}}\n{"return": {"pid": 7}}\n'
_SAID = b"1 p info-get guestinfo.a\n2 b aW5mby1zZXQgZ3Vlc3RpbmZvLmIgeA==\n?\n3 p instantclone.freeze\n"
_SEEN = (
    b"package bash 5.2-15 ii\nservice ssh.service active running 0123\nport tcp 0100007F:0016 77\nowner 77 1 sshd\n"
    b"created f 12 /tmp/a\nchanged d - /etc\ndeleted l - /etc/b\ncount created 1\nlimit files 100\nend\n"
)
_ENDED = (
    b'{"QMP": {"version": {}}}\n{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": '
    b'{"guest": true, "reason": "guest-reset"}}\n'
)
_LEASES = b"1700000000 52:54:00:aa:bb:01 10.0.0.7 web 01:52:54:00:aa:bb:01\n0 52:54:00:aa:bb:02 10.0.0.8 * *\n"
_ACKNOWLEDGED = (
    b"generation abc\ndone random\ndone clock\ntook random 12\nhostname web\n"
    b"machine-id 0123456789abcdef0123456789abcdef\ntcp-killed 3\naddress net0 10.0.0.7/24\nwarning no sshd\n"
)

TARGETS: dict[str, Target] = {
    "guest-rpc": Target(guest_rpc, lambda: [_SAID]),
    "agent": Target(agent, lambda: [_ANSWERS], (GuestError,)),
    "observation": Target(observation, lambda: [_SEEN], (GuestError,)),
    "acknowledgement": Target(acknowledgement, lambda: [_ACKNOWLEDGED], (GuestError,)),
    "leases": Target(leases, lambda: [_LEASES], ()),
    "device-state": Target(device_state, _states, (DamagedError,)),
    "macs": Target(macs, _states, (DamagedError, UsageError)),
    "event-log": Target(event_log, lambda: [_ENDED], (), is_slow=True),
    "stun-frames": Target(stun_frames, _frames),
    "qcow2": Target(qcow2_header, _qcow2s, (DamagedError, UnsupportedError)),
    "qcow2-unwritten": Target(qcow2_unwritten, _qcow2s, (OSError, DamagedError)),
    "import": Target(image_import, _qcow2s, (DamagedError, UnsupportedError, UsageError)),
    "record": Target(record, _records, ()),
    "record-copy": Target(record_copy, _copied, (), is_slow=True),
    "inventory": Target(inventory, _databases, (), is_slow=True),
    "soap": Target(vsphere.soap, vsphere.requests, vsphere.ERRORS),
    "soap-packed": Target(vsphere.packed, vsphere.bodies, vsphere.ERRORS),
    "property-path": Target(vsphere.path, vsphere.paths, vsphere.ERRORS),
    "vi-json": Target(vsphere_web.vi_json, vsphere_web.specs, vsphere_web.ERRORS),
    "json-rpc": Target(vsphere_web.json_rpc, vsphere_web.inputs, vsphere_web.ERRORS),
    "mob-fragment": Target(vsphere_web.fragment, vsphere_web.fragments, vsphere_web.ERRORS),
}
