"""A guest agent whose guest is this machine: its commands are run, its files are real. For tests of scripts."""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ramet.testing.fake_agent import FakeAgent, FakeRefusalError

_MODES = {
    "rb": os.O_RDONLY,
    "r": os.O_RDONLY,
    "r+b": os.O_RDWR,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
}


class LocalAgent(FakeAgent):
    """`shell` takes the place of /bin/sh, to try scripts under others.

    Programs that still run at the end are killed.
    """

    def __init__(self, path: Path, shell: tuple[str, ...] = ("/bin/sh",)) -> None:
        super().__init__(path)
        self.shell = shell
        self.children: dict[int, tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]] = {}
        self.commands["guest-file-flush"] = lambda arguments: {}
        self.open_handles: set[int] = set()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        for child, out, err in self.children.values():
            child.kill()
            child.wait()
            out.close()
            err.close()
        for handle in self.open_handles:
            os.close(handle)

    def _exec(self, arguments: dict[str, Any]) -> Any:
        argv = [arguments["path"], *arguments["arg"]]
        if argv[0] == "/bin/sh":
            argv[:1] = self.shell
        env = dict(pair.split("=", 1) for pair in arguments["env"]) if "env" in arguments else None
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        data = base64.b64decode(arguments.get("input-data", ""))
        with tempfile.TemporaryFile() as stdin:
            stdin.write(data)
            stdin.seek(0)
            try:
                child = subprocess.Popen(argv, stdin=stdin, stdout=out, stderr=err, env=env, cwd="/")
            except OSError as exc:
                raise FakeRefusalError("GenericError", f"Guest command execution failed: {exc}") from exc
        self.children[child.pid] = (child, out, err)
        return {"pid": child.pid}

    def _status(self, arguments: dict[str, Any]) -> Any:
        if arguments["pid"] not in self.children:
            raise FakeRefusalError("GenericError", "Invalid parameter 'pid'")
        child, out, err = self.children[arguments["pid"]]
        code = child.poll()
        if code is None:
            return {"exited": False}
        del self.children[arguments["pid"]]
        answer: dict[str, Any] = {"exited": True, **({"signal": -code} if code < 0 else {"exitcode": code})}
        for name, file in (("out-data", out), ("err-data", err)):
            with file:
                file.seek(0)
                answer[name] = base64.b64encode(file.read()).decode()
        return answer

    def _file_open(self, arguments: dict[str, Any]) -> Any:
        try:
            fd = os.open(arguments["path"], _MODES[arguments["mode"]] | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise FakeRefusalError("GenericError", f"failed to open file: {exc.strerror}") from exc
        os.set_blocking(fd, False)
        self.open_handles.add(fd)
        return fd

    def _file_read(self, arguments: dict[str, Any]) -> Any:
        chunk = os.read(arguments["handle"], arguments["count"])
        eof = len(chunk) < arguments["count"]
        return {"count": len(chunk), "buf-b64": base64.b64encode(chunk).decode(), "eof": eof}

    def _file_write(self, arguments: dict[str, Any]) -> Any:
        return {"count": os.write(arguments["handle"], base64.b64decode(arguments["buf-b64"])), "eof": False}

    def _file_close(self, arguments: dict[str, Any]) -> Any:
        self.open_handles.remove(arguments["handle"])
        os.close(arguments["handle"])
        return {}
