"""Who owns which descriptor, and under which number QEMU sees it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from ramet.errors import UsageError
from ramet.hypervisor.descriptors import DescriptorTable, SocketKind
from tests.unit.hypervisor.plan_kit import open_fds


def some_fd() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def test_a_launched_qemu_sees_the_real_numbers() -> None:
    with DescriptorTable(forked=False) as table:
        fds = [some_fd() for _ in range(3)]
        assert [table.add(fd) for fd in fds] == fds
        assert table.fds == tuple(fds)


def test_a_forked_qemu_sees_them_in_order_from_three() -> None:
    with DescriptorTable(forked=True) as table:
        fds = [some_fd() for _ in range(3)]
        assert [table.add(fd) for fd in fds] == [3, 4, 5]
        assert table.fds == tuple(fds)


def test_everything_is_closed_once(tmp_path: Path) -> None:
    before = open_fds()
    with DescriptorTable(forked=True) as table:
        table.add(some_fd())
        table.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        table.listen(tmp_path / "socket")
        table.ram_file(1 << 20)
        table.blob("kernel", b"x" * 5000)
        assert len(open_fds()) == len(before) + 5
    assert open_fds() == before
    table.close()


def test_a_listening_socket_replaces_a_stale_one_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with DescriptorTable(forked=False) as table:
        table.listen(path)
    with DescriptorTable(forked=False) as table:
        number = table.listen(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client, socket.socket(fileno=os.dup(number)) as listener:
            client.connect(str(path))
            listener.accept()[0].close()


def test_fork_requests_are_packets(tmp_path: Path) -> None:
    with DescriptorTable(forked=False) as table:
        number = table.listen(tmp_path / "fork", SocketKind.SEQPACKET)
        with socket.socket(fileno=os.dup(number)) as listener:
            assert listener.type == socket.SOCK_SEQPACKET


def test_a_path_too_long_for_a_socket_is_refused_with_the_remedy(tmp_path: Path) -> None:
    before = open_fds()
    path = tmp_path / ("x" * 108)
    with DescriptorTable(forked=False) as table, pytest.raises(UsageError, match=r"too long for a socket.*--state"):
        table.listen(path)
    assert open_fds() == before


def test_guest_ram_is_sparse_and_every_user_may_open_it() -> None:
    with DescriptorTable(forked=False) as table:
        status = os.fstat(table.ram_file(1 << 30))
        assert (status.st_size, status.st_blocks) == (1 << 30, 0)
        assert stat.S_IMODE(status.st_mode) == 0o777


def test_a_blob_can_be_read_by_its_number() -> None:
    with DescriptorTable(forked=False) as table:
        number = table.blob("kernel", b"content")
        assert Path(f"/proc/self/fd/{number}").read_bytes() == b"content"
