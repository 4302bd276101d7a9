"""What a look into a guest says, compared; and what no guest may make of it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import GuestError
from ramet.guest.guestfiles import guest_file
from ramet.guest.observing import changes, parse
from ramet.guest.versions import compare

BEFORE = b"""\
package kept 1.0-1 ii
package old 1.0 ii
package up 1.9 ii
package half 1 ii
package gone 3 ii
package rest 1 rc
service app.service active running aaa
service bad.service inactive dead
service same.service active running ccc
service stop.service active running ddd
port tcp 00000000:0016 10
port tcp6 00000000000000000000000000000000:0050 11
end
"""
AFTER = b"""\
created d - /srv/new dir
created f 12 /srv/new dir/file
changed l 5 /etc/link
deleted f 7 /etc/old
count created 2
count changed 9000
count deleted 1
package kept 1.0-1 ii
package old 0.9 ii
package up 1.10 ii
package half 2 iF
package gone 3 rc
package new 1 ii
service app.service active running bbb
service bad.service failed failed eee
service same.service active running ccc
service stop.service inactive dead
port tcp 00000000:0016 10
port tcp 0100007F:1F90 12
owner 12 345 my server
end
"""


def test_differences() -> None:
    found = changes(parse(BEFORE), parse(AFTER))
    assert [(f.change, f.kind, f.path, f.size_bytes) for f in found.files] == [
        ("changed", "link", "/etc/link", None),
        ("deleted", "file", "/etc/old", 7),
        ("created", "folder", "/srv/new dir", None),
        ("created", "file", "/srv/new dir/file", 12),
    ]
    assert (found.files_created, found.files_changed, found.files_deleted) == (2, 9000, 1)
    assert [(p.name, p.change, p.before, p.after) for p in found.packages] == [
        ("gone", "removed", "3", None),
        ("half", "changed", "1", "2 (iF)"),
        ("new", "installed", None, "1"),
        ("old", "downgraded", "1.0", "0.9"),
        ("up", "upgraded", "1.9", "1.10"),
    ]
    assert [(s.name, s.change) for s in found.services] == [
        ("app.service", "restarted"),
        ("bad.service", "failed"),
        ("stop.service", "stopped"),
    ]
    assert [(p.change, p.protocol, p.address, p.port, p.process) for p in found.ports] == [
        ("closed", "tcp", "::", 80, None),
        ("opened", "tcp", "127.0.0.1", 8080, "my server"),
    ]


def test_nothing_changed_is_empty() -> None:
    assert changes(parse(BEFORE), parse(BEFORE)).is_empty


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"package a 1 ii\n",
        b"nonsense\nend\n",
        b"port tcp 12:34 1\nend\n",
        b"port sctp 00000000:0016 1\nend\n",
        b"created f many /x\nend\n",
        b"created f\nend\n",
        b"count created 99999999999999999999\nend\n",
        b"created f 1 /" + b"x" * 10_000 + b"\nend\n",
        b"package\nend\n",
        b"service a\nend\n",
        b"created f 1 /x\n" * 200_000 + b"end\n",
    ],
)
def test_nonsense_is_refused(text: bytes) -> None:
    with pytest.raises(GuestError):
        parse(text)


WORDS = [
    "package",
    "service",
    "port",
    "owner",
    "created",
    "count",
    "limit",
    "f",
    "1",
    "/",
    "tcp",
    "00000000:0016",
    "\x00",
]


@given(st.lists(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=5)), st.binary(max_size=30))
def test_whatever_a_guest_says(lines: list[list[str]], more: bytes) -> None:
    text = "\n".join(" ".join(line) for line in lines).encode(errors="replace") + more + b"\nend\n"
    with contextlib.suppress(GuestError):
        changes(parse(text), parse(text))


@pytest.mark.parametrize(
    ("older", "newer"),
    [("1.9", "1.10"), ("1.0~rc1", "1.0"), ("9", "1:1"), ("1.0-1", "1.0-2"), ("1.0", "1.0a"), ("1.0-1", "1.0-1+b1")],
)
def test_versions_in_order(older: str, newer: str) -> None:
    assert compare(older, newer) < 0 < compare(newer, older)
    assert compare(older, older) == 0


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="no dpkg to ask")
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1.0", "1.00"),
        ("1.2.3-4ubuntu1", "1.2.3-4ubuntu1.1"),
        ("2:0", "1:9"),
        ("1.0+dfsg", "1.0"),
        ("0~~", "0~"),
        ("1a", "1-1"),
    ],
)
def test_versions_as_dpkg_has_it(left: str, right: str) -> None:
    def dpkg(relation: str) -> bool:
        return subprocess.run(["dpkg", "--compare-versions", left, relation, right], check=False).returncode == 0

    order = compare(left, right)
    assert (order < 0, order == 0, order > 0) == (dpkg("lt"), dpkg("eq"), dpkg("gt"))


SHELLS = [shell for shell in (("dash",), ("busybox", "sh")) if shutil.which(shell[0])]


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_the_script_finds_what_changes(shell: tuple[str, ...], tmp_path: Path) -> None:
    root, memory, script = tmp_path / "root", tmp_path / "memory", tmp_path / "observe"
    script.write_bytes(guest_file("try/observe"))
    (root / "sub").mkdir(parents=True)
    for name in ("kept", "written", "moved away", "chmod", "sub/gone"):
        (root / name).write_text(name)
    look = [*shell, str(script)]
    before = subprocess.run([*look, "before", str(memory), str(root)], capture_output=True, check=True, timeout=60)
    (root / "written").write_text("more than before")
    (root / "moved away").rename(root / "moved here")
    (root / "chmod").chmod(0o600)
    (root / "sub" / "gone").unlink()
    (root / "new").mkdir()
    (root / "line\nbreak").touch()
    after = subprocess.run([*look, "after", str(memory), str(root)], capture_output=True, check=True, timeout=60)
    found = changes(parse(before.stdout), parse(after.stdout))
    assert {(file.change, Path(file.path).relative_to(root).as_posix(), file.size_bytes) for file in found.files} == {
        ("changed", "written", 16),
        ("deleted", "moved away", 10),
        ("created", "moved here", 10),
        ("changed", "chmod", 5),
        ("deleted", "sub/gone", 8),
        ("created", "new", None),
    }
    assert not memory.exists()
