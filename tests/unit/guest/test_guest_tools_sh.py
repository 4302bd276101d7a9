"""The tools for guests under the shells that guests have, with a terminal in the place of the virtio port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import shutil
import subprocess
import tty
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ramet.guest.guestfiles import guest_file
from ramet.guest.rpc import GuestRpc

SHELLS = {"dash": ["/bin/dash"], "busybox": ["/bin/busybox", "sh"], "bash": ["/bin/bash", "--posix"]}
Answers = Callable[[bytes], tuple[bool, bytes]]


@pytest.fixture(params=[name for name, argv in SHELLS.items() if Path(argv[0]).exists()])
def shell(request: pytest.FixtureRequest) -> list[str]:
    return SHELLS[request.param]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    for name in ("vmware-rpctool", "vmtoolsd", "install-tools"):
        (tmp_path / name).write_bytes(guest_file(name))
        (tmp_path / name).chmod(0o755)
    return tmp_path


class Port:
    """A terminal in raw mode; this end is the host's. `before` is sent before the first answer."""

    def __init__(self) -> None:
        self.host, self.guest = pty.openpty()
        tty.setraw(self.guest)
        os.set_blocking(self.host, False)
        self.path = os.ttyname(self.guest)
        self.heard = b""

    async def serve(self, answers: Answers, before: bytes = b"") -> None:
        codec = GuestRpc()
        codec.data_to_send()
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_reader(self.host, arrived.set)
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                with contextlib.suppress(BlockingIOError):
                    data = os.read(self.host, 65536)
                    self.heard += data
                    for request in codec.receive(data):
                        os.write(self.host, before + codec.reply(request.id, *answers(request.text)))
                        before = b""
                    os.write(self.host, codec.data_to_send())
        finally:
            loop.remove_reader(self.host)

    def close(self) -> None:
        os.close(self.host)
        os.close(self.guest)


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    port = Port()
    yield port
    port.close()


async def call(
    argv: list[str | Path], port: Port, answers: Answers, before: bytes = b""
) -> tuple[int | None, bytes, bytes]:
    serving = asyncio.create_task(port.serve(answers, before))
    child = await asyncio.create_subprocess_exec(
        *map(str, argv),
        env={"PATH": os.environ["PATH"], "RAMET_RPC_PORT": port.path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(child.communicate(), 20)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    return child.returncode, out, err


def echo(text: bytes) -> tuple[bool, bytes]:
    return True, text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["info-get guestinfo.x"], b"info-get guestinfo.x"),
        (["info-set", "guestinfo.x", "two  words"], b"info-set guestinfo.x two  words"),
        (["log back\\slash \t%s $x `y` 'q' \"r\" *"], b"log back\\slash \t%s $x `y` 'q' \"r\" *"),
        (["log ünï\nnext"], "log ünï\nnext".encode()),
        (["log -n -e"], b"log -n -e"),
    ],
)
async def test_asks_and_prints_the_answer(
    shell: list[str], tools: Path, port: Port, arguments: list[str], text: bytes
) -> None:
    code, out, err = await call([*shell, tools / "vmware-rpctool", *arguments], port, echo)
    assert (code, out, err) == (0, text + b"\n", b"")


async def test_a_refusal_is_an_error(shell: list[str], tools: Path, port: Port) -> None:
    argv: list[str | Path] = [*shell, tools / "vmware-rpctool", "info-get guestinfo.x"]
    answer = await call(argv, port, lambda text: (False, b"No value found"))
    assert answer == (1, b"", b"No value found\n")


@pytest.mark.parametrize("value", [b"", b"x" * 3000, b"a\nb", b" spaces ", b"\\n", b"-n", bytes(range(1, 256))])
async def test_prints_any_value(shell: list[str], tools: Path, port: Port, value: bytes) -> None:
    argv: list[str | Path] = [*shell, tools / "vmware-rpctool", "info-get guestinfo.x"]
    assert await call(argv, port, lambda text: (True, value)) == (0, value + b"\n", b"")


async def test_skips_what_is_not_its_answer(shell: list[str], tools: Path, port: Port) -> None:
    before = b"0 1 p for a killed caller\nhalf\x18\n\xff\xfe\n\n7 0 p x\n"
    argv: list[str | Path] = [*shell, tools / "vmware-rpctool", "info-get guestinfo.x"]
    assert await call(argv, port, lambda text: (True, b"mine"), before) == (0, b"mine\n", b"")


async def test_says_it_again_under_the_same_id_when_asked(shell: list[str], tools: Path, port: Port) -> None:
    asked: list[bytes] = []

    def once(text: bytes) -> tuple[bool, bytes]:
        asked.append(text)
        return True, b"ok"

    argv: list[str | Path] = [*shell, tools / "vmware-rpctool", "instantclone.freeze"]
    assert await call(argv, port, once, before=b"\x18\n?\n") == (0, b"ok\n", b"")
    assert asked == [b"instantclone.freeze"]
    assert port.heard.count(b" p instantclone.freeze\n") in (1, 2)  # it may have read the answer first


async def test_vmtoolsd_is_another_name(shell: list[str], tools: Path, port: Port) -> None:
    # Its own name in the folder finds the other tool, whose first line names a shell of its own.
    for arguments in (["--cmd", "info-get x"], ["--cmd=info-get x"], ["-n", "vmusr", "--cmd", "info-get x"]):
        argv: list[str | Path] = [*shell, tools / "vmtoolsd", *arguments]
        assert await call(argv, port, echo) == (0, b"info-get x\n", b"")
    code, out, _ = await call([*shell, tools / "vmtoolsd", "--version"], port, echo)
    assert (code, out[:5]) == (0, b"Ramet")
    assert (await call([*shell, tools / "vmtoolsd"], port, echo))[0] == 1


async def test_without_a_port_it_says_so(shell: list[str], tools: Path, port: Port) -> None:
    port.path = "/nowhere"
    code, out, err = await call([*shell, tools / "vmware-rpctool", "log x"], port, echo)
    assert (code, out) == (1, b"")
    assert b"no guest RPC channel" in err


async def test_without_a_command_it_explains(shell: list[str], tools: Path, port: Port) -> None:
    code, _, err = await call([*shell, tools / "vmware-rpctool"], port, echo)
    assert code == 1
    assert err.startswith(b"Usage: ")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    folder = Path(__file__).parents[3] / "src/ramet/guest/files"
    scripts = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh")]
    assert len(scripts) > 10
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
