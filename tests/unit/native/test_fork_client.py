"""The client against a peer that is not the library: deadlines, nonsense, and who closes what."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import DeadlineError, ForkError, UnsupportedError, UsageError
from ramet.hypervisor import fork, native

REPLY = struct.Struct("=IHHiI6Q")
REQUEST = fork.ForkRequest(("/bin/true",), {}, (0, 0, 0), "n")


def reply(kind: int, error: int = 0, values: tuple[int, ...] = (0,) * 6, reason: bytes = b"") -> bytes:
    return REPLY.pack(fork.MAGIC, fork.VERSION, kind, error, len(reason), *values) + reason


class Peer:
    """The other end of a client: what it says next is put there beforehand."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(timeout_s)
        self.client = fork.ForkClient(ours)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.socket.close()

    def says(self, packet: bytes, fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self.socket, [packet], fds) if fds else self.socket.send(packet)


@given(
    kind=st.integers(0, 65535),
    error=st.integers(0, 133),
    values=st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
    reason=st.text(max_size=100),
)
def test_replies_are_read_as_they_were_written(kind: int, error: int, values: tuple[int, ...], reason: str) -> None:
    said = reply(kind, error, values, reason.encode())
    assert fork.decode_reply(said) == fork.Reply(kind, error, values, reason)


@given(st.binary(max_size=200))
def test_nonsense_is_a_fork_error(packet: bytes) -> None:
    with pytest.raises(ForkError):
        fork.decode_reply(packet)


@given(cut=st.integers(0, REPLY.size + 4), more=st.binary(min_size=1, max_size=9))
def test_a_reply_cut_or_lengthened_is_a_fork_error(cut: int, more: bytes) -> None:
    whole = reply(fork.IS, reason=b"words")
    for packet in (whole[:cut], whole + more):
        with pytest.raises(ForkError):
            fork.decode_reply(packet)


@pytest.mark.parametrize(
    "bad",
    [
        fork.ForkRequest((), {}, (0, 0, 0), "n"),
        fork.ForkRequest(("true",), {}, (0, 0, 0), "n"),
        fork.ForkRequest(("/bin/true", "a\0b"), {}, (0, 0, 0), "n"),
        fork.ForkRequest(("/bin/true",), {"A": "\0"}, (0, 0, 0), "n"),
        fork.ForkRequest(("/bin/true",), {}, (0, 0), "n"),
        fork.ForkRequest(("/bin/true",), {}, (0,) * 129, "n"),
        fork.ForkRequest(("/bin/true",), {}, (0, 0, 0), ""),
        fork.ForkRequest(("/bin/true",) * 1025, {}, (0, 0, 0), "n"),
        fork.ForkRequest(("/bin/true",), {str(i): "" for i in range(257)}, (0, 0, 0), "n"),
        fork.ForkRequest(("/bin/true", "x" * (128 << 10)), {}, (0, 0, 0), "n"),
    ],
)
def test_what_cannot_be_said_is_refused_before_it_is_sent(bad: fork.ForkRequest) -> None:
    with pytest.raises(ForkError):
        fork.encode_fork(bad)


def test_a_silent_peer_runs_into_the_deadline() -> None:
    with Peer(timeout_s=0.01) as peer, pytest.raises(DeadlineError):
        peer.client.query()


def test_a_peer_that_hung_up_is_a_fork_error() -> None:
    with Peer() as peer:
        peer.socket.close()
        with pytest.raises(ForkError, match="closed the fork connection"):
            peer.client.query()


def test_the_reason_and_the_errno_are_told() -> None:
    with Peer() as peer:
        peer.says(reply(fork.FORKED, 12, reason=b"fork: Cannot allocate memory"))
        with pytest.raises(ForkError, match="Cannot allocate memory") as caught:
            peer.client.fork(REQUEST)
        assert caught.value.fields == {"errno": 12}


def test_an_answer_to_another_question_is_a_fork_error_and_its_descriptors_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Peer() as peer:
        peer.says(reply(fork.IS), (0, 0))
        with pytest.raises(ForkError, match="answer 1 where 2 was due"):
            peer.client.fork(REQUEST)
        peer.says(reply(fork.FORKED))
        with pytest.raises(ForkError, match="no descriptor"):
            peer.client.fork(REQUEST)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_child_that_fails_after_the_fork_is_an_error_and_its_descriptor_is_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Peer() as peer:
        peer.says(reply(fork.FORKED, values=(77, 2_500_000, 0, 0, 0, 0)), (0,))
        peer.says(reply(fork.LEAPT, 24, reason=b"the child failed at placing its descriptors"))
        with pytest.raises(ForkError, match="placing its descriptors"):
            peer.client.fork(REQUEST)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fork_in_two_steps_tells_both_times() -> None:
    with Peer() as peer:
        peer.says(reply(fork.FORKED, values=(77, 2_500_000, 0, 0, 0, 0)), (0,))
        child = peer.client.start_fork(REQUEST)
        assert (child.pid, child.fork_ms) == (77, 2.5)
        assert not os.get_inheritable(child.pidfd)
        os.close(child.pidfd)
        peer.says(reply(fork.LEAPT, values=(4_000_000, 0, 0, 0, 0, 0)))
        assert peer.client.finish_fork() == 4.0


def test_importing_the_client_stays_light() -> None:
    """The stun helper imports it: no event loop, no pydantic, no QEMU library."""
    code = "import sys, ramet.hypervisor.fork; print(*{'asyncio', 'pydantic', 'qemu', 'hashlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == ""


def test_installed_files_are_named_by_content_and_never_rewritten(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    (built / "vmfork.so").write_bytes(b"library")
    (built / "vmfork-holder").write_bytes(b"holder")
    first = native.install_native(tmp_path / "there", built)
    inode = first.library.stat().st_ino
    assert native.install_native(tmp_path / "there", built) == first
    assert first.library.stat().st_ino == inode
    (built / "vmfork.so").write_bytes(b"newer")
    second = native.install_native(tmp_path / "there", built)
    assert second.library != first.library
    assert second.holder == first.holder
    assert first.library.read_bytes() == b"library"
    assert second.library.stat().st_mode & 0o777 == 0o755
    assert len(list((tmp_path / "there").iterdir())) == 3


def test_a_copy_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "vmfork.so").write_bytes(b"library")
    (tmp_path / "vmfork-holder").write_bytes(b"holder")
    paths = native.install_native(tmp_path / "there", tmp_path)
    paths.library.write_bytes(b"lib")
    assert native.install_native(tmp_path / "there", tmp_path).library.read_bytes() == b"library"


def test_what_was_not_built_is_unsupported_with_the_reason(tmp_path: Path) -> None:
    assert native.library_problem(tmp_path) == "The fork library was not built with this package."
    (tmp_path / "problem.txt").write_text("There was no C compiler.\n", encoding="utf-8")
    with pytest.raises(UnsupportedError, match=r"There was no C compiler\."):
        native.install_native(tmp_path / "there", tmp_path)


def test_the_environment_names_library_descriptors_and_owner(tmp_path: Path) -> None:
    paths = native.NativePaths(tmp_path / "l.so", tmp_path / "h")
    assert native.environment(paths, ram_fd=7, control_fd=8, owner_uid=1000) == {
        "LD_PRELOAD": str(tmp_path / "l.so"),
        "VMFORK_RAM_FD": "7",
        "VMFORK_CONTROL_FD": "8",
        "VMFORK_OWNER_UID": "1000",
    }


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="longer than 107 bytes"):
        native.listen_control(tmp_path / ("x" * 120))


def test_ram_is_a_sparse_file_of_its_size() -> None:
    fd = native.create_ram(1 << 40)
    try:
        status = os.fstat(fd)
        assert (status.st_size, status.st_blocks) == (1 << 40, 0)
        assert status.st_mode & 0o666 == 0o666  # QEMU's user opens it by /proc/self/fd
    finally:
        os.close(fd)
