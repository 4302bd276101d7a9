"""The library's pure parts, under sanitizers, on what is right, cut short, and bent."""

from __future__ import annotations

import random
import re
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.hypervisor.fork import ForkRequest, encode_fork, encode_merge, encode_query
from tests.unit.native.native_kit import NATIVE

PAGE = 4096
Case = tuple[str, int, bytes]


class Pure:
    """Runs cases through the sanitized program: one line of answer for each, and no complaint."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def __call__(self, *cases: Case) -> list[str]:
        given = b"".join(struct.pack("=III", ord(kind), number, len(data)) + data for kind, number, data in cases)
        done = subprocess.run([self._program], input=given, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        lines = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
        assert len(lines) == len(cases)
        return lines


@pytest.fixture(scope="session")
def pure(pure_program: Path) -> Pure:
    return Pure(pure_program)


def bent(data: bytes, seed: int, count: int) -> Iterable[bytes]:
    """`data` with some bytes changed, cut off or added, differently each time."""
    dice = random.Random(seed)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(dice.randint(1, 6)):
            copy[dice.randrange(len(copy))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        yield bytes(copy[: dice.randint(0, len(copy))] if dice.random() < 0.3 else copy)


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
requests = st.builds(
    ForkRequest,
    argv=st.lists(text, max_size=20).map(lambda rest: ("/program", *rest)),
    env=st.dictionaries(text.filter(lambda key: "=" not in key), text, max_size=10),
    fds=st.lists(st.integers(0, 1000), min_size=3, max_size=128).map(tuple),
    name=text.filter(lambda name: bool(name)),
)


def hex_words(line: str) -> list[str]:
    return [bytes.fromhex(word).decode("utf-8") for word in re.findall(r" ([0-9a-f]*)\.", line)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests)
def test_what_python_encodes_the_library_reads(pure: Pure, request: ForkRequest) -> None:
    (line,) = pure(("r", len(request.fds), encode_fork(request)))
    assert line.startswith(f"2 0 {len(request.argv)} {len(request.env)} {len(request.fds)}")
    name, *strings = hex_words(line)
    assert request.name.startswith(name)
    assert len(name) == len(request.name) or len(name.encode()) > 11  # 15 bytes, less what would be half a character
    assert tuple(strings[: len(request.argv)]) == request.argv
    assert strings[len(request.argv) :] == [f"{key}={value}" for key, value in request.env.items()]


def test_short_requests_are_read(pure: Pure) -> None:
    assert pure(("r", 0, encode_query()), ("r", 0, encode_merge(True)), ("r", 0, encode_merge(False))) == [
        "1 0 0 0 0",
        "3 1 0 0 0",
        "3 0 0 0 0",
    ]


def test_bent_requests_are_refused_or_read_but_never_overread(pure: Pure) -> None:
    request = ForkRequest(("/bin/x", "-a", "b" * 50), {"A": "1", "B": ""}, (0, 1, 2), "name")
    packet = encode_fork(request)
    cases = [("r", 3, packet[:n]) for n in range(len(packet))]
    cases += [("r", 3, data) for data in bent(packet, 1, 3000)]
    lines = pure(*cases)
    assert all(line.startswith("no 22 ") for line in lines[: len(packet)])
    assert any(line.startswith("2 ") for line in lines[len(packet) :])


def find_linker() -> Path:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if "/ld-linux" in line:
            return Path(line.split()[-1])
    pytest.skip("the interpreter is not dynamically linked by glibc")


def test_this_machines_linker_and_a_program_are_understood(pure: Pure) -> None:
    linker, program = find_linker().read_bytes(), Path("/bin/true").read_bytes()
    linker_line, program_line = pure(("e", 0, linker[:4096]), ("e", 0, program[:4096]))
    assert "is static" in linker_line
    assert "; program 0 " in linker_line
    found = re.match(r"interpreter (\d+) (\d+);", program_line)
    assert found
    offset, size = int(found[1]), int(found[2])
    assert program[offset : offset + size].endswith(b"\0")
    assert program[offset : offset + size].startswith(b"/")


def test_bent_programs_are_refused_or_read_but_never_overread(pure: Pure) -> None:
    header = find_linker().read_bytes()[:1024]
    cases = [("e", 0, header[:n]) for n in range(0, len(header), 3)]
    cases += [("e", 0, data) for seed in (2, 3) for data in bent(header[:700], seed, 3000)]
    assert any("cannot be mapped" in line for line in pure(*cases))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    argv=st.lists(st.text("abc-/= ", min_size=1, max_size=30), min_size=1, max_size=20),
    env=st.lists(st.text("ABC=/ ", min_size=1, max_size=30), max_size=20),
    room=st.integers(0, 4000),
)
def test_a_program_finds_its_arguments_or_the_stack_is_refused(
    pure: Pure, argv: list[str], env: list[str], room: int
) -> None:
    data = b"".join(s.encode() + b"\0" for s in (*argv, "", *env))
    big, small = pure(("s", 16384, data), ("s", room, data))
    words, _, shown = big.partition(" | ")
    assert hex_words(" " + words) == ["/ld.so", *argv, *env, "MORE=1"]
    assert words.startswith(str(len(argv) + 1))
    assert words.endswith(f"6=4096 25=ab 15=x86_64 31={argv[0]}")
    assert shown == "".join(f"{s}~" for s in (*argv, *env, "MORE=1"))
    assert small == big or small.startswith("no 7 ")


def naive_gaps(keep: list[tuple[int, int]], top: int) -> set[int]:
    return {page for page in range(top) if not any(start <= page < end for start, end in keep)}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6), top=st.integers(0, 60))
def test_gaps_are_all_that_is_not_kept(pure: Pure, keep: list[tuple[int, int]], top: int) -> None:
    (line,) = pure(("g", top, b"".join(struct.pack("=QQ", start * PAGE, end * PAGE) for start, end in keep)))
    ranges = [tuple(int(end, 16) // PAGE for end in word.split("-")) for word in line.split()]
    assert {page for start, end in ranges for page in range(start, end)} == naive_gaps(keep, top)
    assert len(ranges) <= len(keep) + 1


@pytest.mark.parametrize("piece", [1, 7, 4096, 0])
def test_maps_are_read_in_pieces_of_any_size(pure: Pure, piece: int) -> None:
    data = Path("/proc/self/maps").read_bytes() + b"7000-8000 r--p 0 00:00 0 /" + b"x" * 9000 + b"\n"
    (line,) = pure(("m", piece, data))
    mappings = [row.split()[0] for row in data.decode().splitlines()]
    assert re.findall(r"[0-9a-f]+-[0-9a-f]+", line) == [
        "-".join(f"{int(part, 16):x}" for part in row.split("-")) for row in mappings
    ]
    assert "[vdso]" in line


def test_bent_maps_are_survived(pure: Pure) -> None:
    data = b"5000-6000 r-xp 00000000 00:00 0 [vdso]\nff-0 r\n-\n\n7000-8000\n7000-9000 r\n"
    pure(*(("m", seed % 9, case) for seed, case in enumerate(bent(data, 4, 500))))
    assert pure(("m", 0, data)) == ["5000-6000 [vdso] 7000-9000  "]


def test_stat_fields_are_counted_behind_the_name(pure: Pure) -> None:
    data = b"12 (a) b (c) ) S 1 2 3 " + b" ".join(str(n).encode() for n in range(7, 53)) + b"\n\0"
    assert pure(("t", 4, data), ("t", 7, data), ("t", 47, data), ("t", 90, data), ("t", 47, b"\0")) == [
        "1",
        "7",
        "47",
        "0",
        "0",
    ]


def test_another_architecture_is_told_plainly() -> None:
    source = NATIVE / "internal.h"
    done = subprocess.run(
        ["cc", "-U__x86_64__", "-fsyntax-only", "-x", "c", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "vmfork: only x86-64 is supported so far" in done.stderr
