"""Every failure is answered with its reason, and the program that was asked goes on serving."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.errors import ForkError
from ramet.hypervisor.fork import (
    ForkClient,
    ForkRequest,
    Reply,
    create_ram,
    decode_reply,
    encode_fork,
    environment,
    listen_control,
)
from tests.unit.native.native_kit import PROGRAMS, RAM_BYTES, TIMEOUT_S, Nursery, Process, compile_c, raw_packets

HEAD = struct.Struct("=IHHIIIIII")
MAGIC = 0x4B464D56


def head(
    verb: int,
    body: bytes = b"",
    *,
    version: int = 1,
    length: int | None = None,
    value: int = 0,
    counts: tuple[int, ...] = (0, 0, 0),
) -> bytes:
    return HEAD.pack(MAGIC, version, verb, len(body) if length is None else length, value, *counts, 0) + body


def answer(source: Process, packet: bytes, fds: tuple[int, ...] = ()) -> Reply:
    return decode_reply(raw_packets(source.control, packet, fds))


def goes_on(nursery: Nursery, source: Process) -> bool:
    """Still serves, and has kept no descriptor of what it refused (but perhaps a connection about to close)."""
    nursery.end(nursery.fork(source))
    return len(source.fds()) <= 9


BAD = {
    "garbage": (b"\xff" * 64, "this is no request"),
    "too short": (b"VMFK", "a packet of 4 bytes is no request"),
    "another version": (head(1, version=2), "protocol version 2"),
    "unknown verb": (head(77), "verb 77 is not known"),
    "length too large": (head(2, b"x\0", length=1000), "1000 bytes announced"),
    "length too small": (head(2, b"x\0y\0", length=1), "1 bytes announced"),
    "query with a body": (head(1, b"x"), "takes no body"),
    "merge maybe": (head(3, value=2), "merge is 0 or 1"),
    "no arguments": (head(2, b"x\0", counts=(0, 0, 3)), "0 arguments"),
    "too many arguments": (head(2, b"x\0", counts=(5000, 0, 3)), "5000 arguments"),
    "too much environment": (head(2, b"x\0/y\0", counts=(1, 5000, 3)), "5000 environment strings"),
    "too few descriptors": (head(2, b"x\0/y\0", counts=(1, 0, 2)), "2 descriptors"),
    "descriptors that did not come": (head(2, b"x\0/y\0", counts=(1, 0, 3)), "0 came"),
}


@pytest.mark.parametrize(("packet", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_answered(nursery: Nursery, packet: bytes, reason: str) -> None:
    source = nursery.launch()
    reply = answer(source, packet)
    assert reply.error == errno.EINVAL
    assert reason in reply.reason
    assert goes_on(nursery, source)


@pytest.mark.parametrize(
    ("body", "counts", "reason"),
    [
        (b"", (1, 0, 3), "ends before its name"),
        (b"\0/bin/true\0", (1, 0, 3), "the name has 0 bytes"),
        (b"a-name-of-sixteen\0/bin/true\0", (1, 0, 3), "the name has 17 bytes"),
        (b"n\0/bin/true\0", (2, 0, 3), "ends before argument 1"),
        (b"n\0/bin/true", (1, 0, 3), "ends before argument 0"),
        (b"n\0/bin/true\0", (1, 1, 3), "ends before environment string 0"),
        (b"n\0/bin/true\0X=1\0", (1, 0, 3), "4 bytes follow"),
        (b"n\0bin/true\0", (1, 0, 3), "not an absolute path"),
    ],
)
def test_a_bad_body_is_answered(nursery: Nursery, body: bytes, counts: tuple[int, ...], reason: str) -> None:
    source = nursery.launch()
    with open("/dev/null", "rb") as null:
        reply = answer(source, head(2, body, counts=counts), (null.fileno(),) * 3)
    assert reply.error == errno.EINVAL
    assert reason in reply.reason
    assert goes_on(nursery, source)


def test_a_packet_that_is_too_large_is_answered(nursery: Nursery) -> None:
    source = nursery.launch()
    reply = answer(source, head(2, b"x" * (130 << 10)))
    assert reply.error == errno.EMSGSIZE
    assert "at most 131072 bytes" in reply.reason
    assert goes_on(nursery, source)


def test_too_many_descriptors_are_refused_and_closed(nursery: Nursery) -> None:
    source = nursery.launch()
    body = b"n\0/bin/true\0"
    with open("/dev/null", "rb") as null:
        for count in (129, 253):
            reply = answer(source, head(2, body, counts=(1, 0, count)), (null.fileno(),) * count)
            assert f"{count} descriptors where 3 to 128" in reply.reason
    assert goes_on(nursery, source)


def test_an_unwanted_descriptor_is_closed(nursery: Nursery) -> None:
    source = nursery.launch()
    with open("/dev/null", "rb") as null:
        for _ in range(20):
            assert answer(source, head(1), (null.fileno(),)).error == errno.EINVAL
    assert goes_on(nursery, source)


def test_the_source_runs_out_of_descriptors(nursery: Nursery) -> None:
    source = nursery.launch()
    few = len(source.fds()) + 2
    resource.prlimit(source.pid, resource.RLIMIT_NOFILE, (few, 4096))
    with pytest.raises(ForkError, match=r"not all descriptors could be received|cannot be opened"):
        nursery.fork(source)
    resource.prlimit(source.pid, resource.RLIMIT_NOFILE, (100, 4096))
    with pytest.raises(ForkError, match="a descriptor above 128"):
        nursery.fork(source)
    resource.prlimit(source.pid, resource.RLIMIT_NOFILE, (1024, 4096))
    assert goes_on(nursery, source)


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (None, 0, "No such file or directory"),
        (b"#!/bin/sh\n", 0o755, "is too short for a program"),
        (b"#!/bin/sh\n" * 100, 0o755, "is no ELF file"),
        (b"\x7fELF\x01\x01\x01" + bytes(200), 0o755, "another machine"),
        (b"\x7fELF\x02\x01\x01" + bytes(11) + b"\x3e\0" + bytes(200), 0o755, "program headers out of reach"),
        (b"\x7fELF", 0o644, "cannot be run: Permission denied"),
    ],
)
def test_a_program_that_cannot_run_is_refused(
    nursery: Nursery, tmp_path: Path, content: bytes | None, mode: int, reason: str
) -> None:
    program = tmp_path / "program"
    if content is not None:
        program.write_bytes(content)
        program.chmod(mode)
    source = nursery.launch()
    with pytest.raises(ForkError, match=reason):
        nursery.fork(source, program=program)
    assert goes_on(nursery, source)


def test_a_directory_is_no_program(nursery: Nursery, tmp_path: Path) -> None:
    with pytest.raises(ForkError, match="is no regular file"):
        nursery.fork(nursery.launch(), program=tmp_path)


def test_a_static_program_is_refused(nursery: Nursery, tmp_path: Path) -> None:
    static = compile_c(tmp_path / "static", "-static", f"{PROGRAMS}/guest.c", "-pthread")
    source = nursery.launch()
    with pytest.raises(ForkError, match="is static"):
        nursery.fork(source, program=static)
    assert goes_on(nursery, source)


def test_a_library_that_was_removed_or_replaced_is_noticed(nursery: Nursery, tmp_path: Path) -> None:
    """Without it a clone would come up with empty memory: ld.so only warns when a library is missing."""
    copy = tmp_path / "copy.so"
    content = nursery.paths.library.read_bytes()
    copy.write_bytes(content)
    nursery.paths = replace(nursery.paths, library=copy)
    source = nursery.launch()
    copy.unlink()
    with pytest.raises(ForkError, match=r"copy\.so: No such file"):
        nursery.fork(source)
    (tmp_path / "new.so").write_bytes(content)
    (tmp_path / "new.so").rename(copy)
    with pytest.raises(ForkError, match="was replaced"):
        nursery.fork(source)
    assert source.number("sum") == 0


def test_another_user_is_turned_away(nursery: Nursery, public: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs a second user")
    peer = compile_c(public / "peer", f"{PROGRAMS}/peer.c")
    nursery.directory = public
    source = nursery.launch()
    source.control.chmod(0o777)
    for user, expected in ((65534, "user 65534 is not the owner"), (0, "silence")):
        done = subprocess.run(
            [peer, source.control], user=user, extra_groups=[], cwd="/", stdout=subprocess.PIPE, timeout=TIMEOUT_S
        )
        assert expected in done.stdout.decode()
    assert goes_on(nursery, source)


def test_an_unprivileged_program_serves_its_owner(nursery: Nursery) -> None:
    """QEMU's user is not the daemon's: the library's own user and the owner are both served."""
    if os.getuid() != 0:
        pytest.skip("needs a second user")
    source = nursery.launch(user=65534)
    clone = nursery.fork(nursery.fork(source))
    assert "Uid:\t65534\t65534\t65534\t65534" in clone.proc("status")
    assert clone.number("sum") == 0


def test_a_silent_or_vanishing_peer_holds_up_nobody(nursery: Nursery) -> None:
    source = nursery.launch()
    with source.connect() as silent:
        for _ in range(40):  # more than the library keeps: the idlest is dropped
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
                gone.settimeout(TIMEOUT_S)
                gone.connect(str(source.control))
                gone.send(head(1))
        assert nursery.fork(source).number("sum") == 0
        assert silent.query().forks == 1
    idle = [source.connect() for _ in range(20)]
    try:
        with source.connect() as late:
            assert late.query().forks == 1
        with pytest.raises(ForkError, match="closed the fork connection"):
            idle[0].query()
    finally:
        for client in idle:
            client.close()
    assert nursery.fork(source).number("sum") == 0


def send_until_refused(peer: socket.socket) -> None:
    for _ in range(10000):
        peer.send(head(1))


def test_a_peer_that_never_reads_is_dropped(nursery: Nursery) -> None:
    source = nursery.launch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        deaf.settimeout(TIMEOUT_S)
        deaf.connect(str(source.control))
        with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
            send_until_refused(deaf)
    assert nursery.fork(source).number("sum") == 0


def test_a_child_of_nobody_is_ended(nursery: Nursery, tmp_path: Path) -> None:
    """Whoever asked hangs up before the answer: the child is killed, for nobody would know of it."""
    source = nursery.launch()
    with ExitStack() as stack:
        ram, null = create_ram(RAM_BYTES), os.open("/dev/null", os.O_RDWR)
        stack.callback(os.close, ram)
        stack.callback(os.close, null)
        listener = stack.enter_context(listen_control(tmp_path / "orphan"))
        request = ForkRequest(
            argv=(str(nursery.paths.holder),),  # would hold for ever
            env=environment(nursery.paths, ram_fd=3, control_fd=4, owner_uid=0),
            fds=(null, null, null, ram, listener.fileno()),
            name="orphan",
        )
        peer = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        peer.connect(str(source.control))
        peer.shutdown(socket.SHUT_RD)
        socket.send_fds(peer, [encode_fork(request)], request.fds)
        with ForkClient.connect(source.control, TIMEOUT_S) as client:
            assert client.query().forks == 1
    info = os.waitid(os.P_ALL, 0, os.WEXITED)
    assert info is not None
    assert (info.si_code, info.si_status) == (os.CLD_KILLED, 9)
    assert source.number("sum") == 0


@pytest.mark.parametrize("missing", ["VMFORK_CONTROL_FD", "VMFORK_OWNER_UID"])
def test_a_half_set_environment_ends_the_program(nursery: Nursery, missing: str) -> None:
    env = environment(nursery.paths, ram_fd=0, control_fd=0, owner_uid=0)
    del env[missing]
    child = os.posix_spawn("/bin/true", ["/bin/true"], env)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 126


def test_without_ram_the_library_does_nothing(nursery: Nursery) -> None:
    child = os.posix_spawn("/bin/true", ["/bin/true"], {"LD_PRELOAD": str(nursery.paths.library)})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_holder_without_the_library_refuses(nursery: Nursery) -> None:
    holder = str(nursery.paths.holder)
    child = os.posix_spawn(holder, [holder], {"VMFORK_RAM_FD": "0"})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
