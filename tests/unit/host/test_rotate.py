import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.host.rotate import Rotator, read_tail, rotate, rotated


def test_a_small_or_missing_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    assert rotate(path, 100) is False
    path.write_bytes(b"x" * 49)
    assert rotate(path, 100) is False
    assert not rotated(path).exists()


def test_a_writer_that_appends_goes_on_at_the_new_end(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"a" * 60)
    assert rotate(path, 100) is True
    os.write(fd, b"b")
    os.close(fd)
    assert path.read_bytes() == b"b"
    assert rotated(path).read_bytes() == b"a" * 50


async def test_the_tail_reaches_into_the_rotated_part(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    assert await read_tail(path, 10) == b""
    rotated(path).write_bytes(b"0123456789")
    path.write_bytes(b"abc")
    assert await read_tail(path, 2) == b"bc"
    assert await read_tail(path, 5) == b"89abc"
    assert await read_tail(path, 100) == b"0123456789abc"
    assert await read_tail(path, 0) == b""


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 100)
    (tmp_path / "console.log").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        rotate(tmp_path / "console.log", 100)
    assert (tmp_path / "secret").stat().st_size == 100


@settings(deadline=None, max_examples=40)
@given(writes=st.lists(st.binary(max_size=80), max_size=30))
def test_whatever_is_written_the_tail_is_the_end_of_it_and_the_quota_holds(
    tmp_path_factory: pytest.TempPathFactory, writes: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("rotate") / "log"
    written = b""
    for data in writes:
        with path.open("ab") as file:
            file.write(data)
        written += data
        rotate(path, 200)
        tail = asyncio.run(read_tail(path, 1000))
        assert written.endswith(tail)
        assert len(tail) >= min(len(written), 100)
        assert path.stat().st_size + (rotated(path).stat().st_size if rotated(path).exists() else 0) <= 200


async def test_a_file_that_cannot_be_rotated_does_not_stop_the_others(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    good.write_bytes(b"x" * 100)
    rotator = Rotator(lambda: [(bad, 100), (good, 100)])
    await rotator.look()
    await rotator.look()
    assert good.read_bytes() == b""
