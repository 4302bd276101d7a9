"""A client of the standard qemu-guest-agent. What it answers comes from the guest: bounded and checked here."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ramet.errors import DeadlineError, GuestError, RametError, UsageError
from ramet.guest.agent_wire import MAX_ANSWER_BYTES, OUT_OF_ORDER, AgentWire
from ramet.guest.ssh_keys import ADD_KEYS

T = TypeVar("T")

# The agent itself keeps at most 16 MiB of each output; both, in base64, fit into this.
_MAX_EXEC_ANSWER_BYTES = 48 << 20
_MAX_INPUT_BYTES = 16 << 20
_CHUNK_BYTES = 192 * 1024
_FIRST_POLL_S = 0.002
_LAST_POLL_S = 0.1
_CLEANUP_S = 2.0
_PATIENCE = 3
_PING_S = 5.0
_SHUTDOWN_ANSWER_S = 1.0
_FORBIDDEN = "Agents of RHEL and its kin may not run programs or touch files: see /etc/sysconfig/qemu-ga in the guest."
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ShutdownMode(StrEnum):
    POWERDOWN = "powerdown"
    REBOOT = "reboot"
    HALT = "halt"


@dataclass(frozen=True)
class ExecOutcome:
    """How a command in the guest ended: `exit_code`, or `signal` if one killed it."""

    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    """The agent keeps 16 MiB of each output."""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class _Answer(BaseModel):
    """Base of what the agent sends: newer agents add fields, which are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", populate_by_name=True)


_Short = Annotated[str, Field(max_length=1024)]


class Address(_Answer):
    kind: _Short = Field(alias="ip-address-type")
    """'ipv4' or 'ipv6'."""
    address: _Short = Field(alias="ip-address")
    prefix: int = Field(ge=0, le=128)


class Interface(_Answer):
    name: _Short
    mac: _Short | None = Field(default=None, alias="hardware-address")
    addresses: Annotated[list[Address], Field(max_length=1024)] = Field(default=[], alias="ip-addresses")


class OsInfo(_Answer):
    id: _Short | None = None
    name: _Short | None = None
    pretty_name: _Short | None = Field(default=None, alias="pretty-name")
    version_id: _Short | None = Field(default=None, alias="version-id")
    kernel_release: _Short | None = Field(default=None, alias="kernel-release")
    machine: _Short | None = None


class _Pid(_Answer):
    pid: int


class _ExecStatus(_Answer):
    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: str = Field(default="", alias="out-data")
    err_data: str = Field(default="", alias="err-data")
    out_truncated: bool = Field(default=False, alias="out-truncated")
    err_truncated: bool = Field(default=False, alias="err-truncated")


class _Hostname(_Answer):
    hostname: _Short = Field(alias="host-name")


class _Read(_Answer):
    count: int = Field(ge=0)
    data: str = Field(alias="buf-b64")
    eof: bool


class _Written(_Answer):
    count: int = Field(ge=0)
    eof: bool = False


class _ErrorText(_Answer):
    error_class: _Short = Field(default="GenericError", alias="class")
    description: str = Field(default="", alias="desc")


def _checked(kind: type[T], value: Any, command: str) -> T:
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as exc:
        raise GuestError(
            f"The guest agent's answer to {command} makes no sense.", hint=OUT_OF_ORDER, command=command
        ) from exc


def _refuse(command: str, error: Any) -> NoReturn:
    """Field `error_class` is the agent's, like 'CommandNotFound'."""
    told = _checked(_ErrorText, error, command)
    text = "".join(c if c.isprintable() else "?" for c in told.description[:500])
    raise GuestError(
        f"The guest agent refused {command}: {text or told.error_class}.",
        hint=_FORBIDDEN if told.error_class == "CommandNotFound" else None,
        command=command,
        error_class=told.error_class,
    )


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as exc:
        raise GuestError("The guest agent sent broken base64.", hint=OUT_OF_ORDER) from exc


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Agent:
    """The agent of one VM, reached through QEMU's chardev socket. Connects when first needed; `close` ends it.

    One command at a time. A command that fails or is given up half way closes the connection, and the next one
    opens and synchronises a new one. Raises `DeadlineError` when the guest does not answer in time, `GuestError`
    when it refuses or answers nonsense, OSError when QEMU is not there, and what `hold` was given while the guest
    stands still.
    """

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._wire: AgentWire | None = None
        self._why_held: Callable[[], RametError] | None = None
        self._busy = False

    async def connect(self) -> None:
        """Connect now, and say nothing. While nobody is connected to its port the agent in the guest looks ten times a
        second whether somebody is, which is most of what an idle guest does. OSError when QEMU is not there."""
        async with self._lock:
            await self._connected()

    async def close(self) -> None:
        """Drop the connection; what is under way on it fails with `GuestError`."""
        if self._wire is not None:
            self._wire.interrupt()
        async with self._lock:
            self._drop()

    def hold(self, why: Callable[[], RametError]) -> None:
        """The guest stands still, so nobody can answer: the command that is under way fails at once with what `why`
        makes, and so does every other one until `release`."""
        self._why_held = why
        if self._wire is not None and self._busy:  # an idle one stays as the device state has it
            self._wire.interrupt()

    def release(self) -> None:
        """The guest goes on."""
        self._why_held = None

    def _check_held(self) -> None:
        if self._why_held is not None:
            raise self._why_held()

    @contextlib.asynccontextmanager
    async def quiet(self, timeout_s: float | None = None) -> AsyncIterator[None]:
        """Inside, no command is in flight and none starts: for the stun. A command that runs is waited for."""
        try:
            await asyncio.wait_for(self._lock.acquire(), self._timeout_s if timeout_s is None else timeout_s)
        except TimeoutError:
            raise DeadlineError(
                "The guest agent is busy with another command.", hint="Try again when that has ended."
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    async def command(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Any:
        """Any command of the agent's; its "return", unchecked."""
        limit_s = self._usual_limit_s() if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s), self._lock:
                answer = await self._exchange(name, dict(arguments or {}), max_bytes)
        except TimeoutError:
            raise DeadlineError(
                f"The guest agent did not answer {name} within {limit_s:g} s.",
                hint="Check that qemu-guest-agent runs in the guest.",
                command=name,
            ) from None
        if "error" not in answer:
            return answer["return"]
        _refuse(name, answer["error"])

    def _usual_limit_s(self) -> float:
        """An agent that has answered is there: its machine, or ours, is only slow, and is given longer."""
        answered = self._wire is not None and self._wire.in_step
        return _PATIENCE * self._timeout_s if answered else self._timeout_s

    async def _exchange(self, name: str, arguments: dict[str, Any], max_bytes: int) -> dict[str, Any]:
        self._check_held()
        self._busy = True
        try:
            wire = await self._connected()
            self._check_held()
            await wire.synchronise()
            await wire.send(name, arguments)
            return await wire.answer(max_bytes)
        except BaseException as exc:
            self._drop()
            if isinstance(exc, GuestError):  # it may have been interrupted because of that
                self._check_held()
            raise
        finally:
            self._busy = False

    async def _connected(self) -> AgentWire:
        if self._wire is not None and self._wire.has_ended:  # while nobody used it
            self._drop()
        if self._wire is None:
            self._wire = await AgentWire.open(self._path)
        return self._wire

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    async def tell(self, name: str) -> None:
        """Say a command, and wait for no answer: an agent that is stuck finds it when it goes on."""
        async with asyncio.timeout(_CLEANUP_S), self._lock:
            try:
                await (await self._connected()).send(name, {})
            finally:
                self._drop()

    async def ping(self, *, timeout_s: float | None = None) -> None:
        """Returns when the agent answers; with a long `timeout_s` it waits for a guest that is starting.

        Asked anew every few seconds: what is said to a guest that restarts is lost, and never answered.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = asyncio.get_running_loop().time() + limit_s
        while (left_s := deadline - asyncio.get_running_loop().time()) > _PING_S:
            with contextlib.suppress(DeadlineError):
                return await self._ping(_PING_S)
        await self._ping(max(left_s, _PING_S / 100))

    async def _ping(self, timeout_s: float) -> None:
        await self.command("guest-ping", timeout_s=timeout_s)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> ExecOutcome:
        """Run a program in the guest to its end. After `timeout_s`, or when cancelled, it is killed; the former is a
        `DeadlineError`."""
        pid = await self.spawn(argv, stdin=stdin, env=env, timeout_s=min(timeout_s, self._usual_limit_s()))
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ended(pid)
        except TimeoutError:
            await self.kill(pid)
            raise DeadlineError(
                f"{argv[0]} did not end within {timeout_s:g} s in the guest.", hint="Give it longer with --timeout."
            ) from None
        except asyncio.CancelledError:  # a deadline around this one, too: what runs on would meet the next attempt
            await self.kill(pid)
            raise

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Start a program in the guest; its process id. `ended` must be asked until it has, or the agent keeps it.

        `timeout_s` is for the starting alone; after it nobody knows whether the guest has heard.
        """
        if not argv or len(stdin) > _MAX_INPUT_BYTES:
            raise UsageError("A command is needed, and at most 16 MiB of standard input.")
        arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = _encoded(stdin)
        if env:
            # An environment given to the agent replaces its own.
            arguments["env"] = [_PATH, *(f"{key}={value}" for key, value in env.items())]
        answer = await self.command("guest-exec", arguments, timeout_s=timeout_s)
        return _checked(_Pid, answer, "guest-exec").pid

    async def ended(self, pid: int) -> ExecOutcome | None:
        """How a program that `spawn` started ended; None while it runs. It is forgotten once it was told."""
        answer = await self.command("guest-exec-status", {"pid": pid}, max_bytes=_MAX_EXEC_ANSWER_BYTES)
        status = _checked(_ExecStatus, answer, "guest-exec-status")
        if not status.exited:
            return None
        return ExecOutcome(
            exit_code=status.exitcode,
            signal=status.signal,
            stdout=_decoded(status.out_data),
            stderr=_decoded(status.err_data),
            truncated=status.out_truncated or status.err_truncated,
        )

    async def _ended(self, pid: int) -> ExecOutcome:
        pause_s = _FIRST_POLL_S
        while (outcome := await self.ended(pid)) is None:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LAST_POLL_S)
        return outcome

    async def kill(self, pid: int) -> None:
        """Kill a process; an agent that does not answer is no error."""
        with contextlib.suppress(RametError, OSError):
            arguments = {"path": "/bin/sh", "arg": ["-c", f"kill -KILL {pid}"]}
            await self.command("guest-exec", arguments, timeout_s=_CLEANUP_S)

    async def shell(self, script: str, *arguments: str, timeout_s: float) -> bytes:
        """Run a POSIX sh script with $1, $2, …; its output, or `GuestError` with its error output."""
        outcome = await self.exec(["/bin/sh", "-c", script, "sh", *arguments], timeout_s=timeout_s)
        if not outcome.ok:
            why = outcome.stderr.decode(errors="replace").strip()[-500:] or f"exit status {outcome.exit_code}"
            raise GuestError(f"A script in the guest failed: {why}")
        return outcome.stdout

    async def read_file(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """A whole file; `GuestError` if it is larger than `max_bytes`."""
        content = bytearray()
        async with contextlib.aclosing(self.read_stream(path)) as chunks:
            async for chunk in chunks:
                content += chunk
                if len(content) > max_bytes:
                    raise GuestError(f"{path} is larger than {max_bytes} bytes.")
        return bytes(content)

    async def read_stream(self, path: str) -> AsyncGenerator[bytes, None]:
        """A file in pieces of at most 192 KiB. Close the iterator (``aclosing``) when stopping early."""
        async with self._opened(path, "rb") as handle:
            while True:
                chunk, eof = await self.read_chunk(handle)
                if not chunk and not eof:
                    raise GuestError("The guest agent's answer to guest-file-read makes no sense.")
                if chunk:
                    yield chunk
                if eof:
                    return

    async def write_file(self, path: str, content: bytes | AsyncIterable[bytes], *, mode: int | None = None) -> None:
        """Create or replace a file, in place. `mode`: set first, as the agent makes files that anybody may write."""
        if mode is not None:
            await self.shell('umask 077; : >>"$1" && chmod "$2" "$1"', path, f"{mode:o}", timeout_s=self._timeout_s)
        async with self._opened(path, "wb") as handle:
            if isinstance(content, bytes):
                await self._write(handle, content)
            else:
                async for piece in content:
                    await self._write(handle, piece)

    async def _write(self, handle: int, content: bytes) -> None:
        view = memoryview(content)
        while view:
            chunk = bytes(view[:_CHUNK_BYTES])
            answer = await self.command("guest-file-write", {"handle": handle, "buf-b64": _encoded(chunk)})
            count = _checked(_Written, answer, "guest-file-write").count
            if not 0 < count <= len(chunk):
                raise GuestError("The guest agent wrote nothing: its disk may be full.")
            view = view[count:]

    @contextlib.asynccontextmanager
    async def _opened(self, path: str, mode: str) -> AsyncIterator[int]:
        handle = await self.open_file(path, mode)
        try:
            yield handle
        except BaseException:
            with contextlib.suppress(RametError, OSError):
                await self.close_file(handle, timeout_s=_CLEANUP_S)
            raise
        await self.close_file(handle)

    async def open_file(self, path: str, mode: str) -> int:
        """A handle, as C's fopen with that mode. Opening a pipe without its other end blocks the agent, but for r+."""
        return _checked(int, await self.command("guest-file-open", {"path": path, "mode": mode}), "guest-file-open")

    async def read_chunk(self, handle: int) -> tuple[bytes, bool]:
        """At most 192 KiB, and whether the end was met: a file that grows can be read on after it."""
        answer = await self.command("guest-file-read", {"handle": handle, "count": _CHUNK_BYTES})
        read = _checked(_Read, answer, "guest-file-read")
        chunk = _decoded(read.data)
        if len(chunk) > _CHUNK_BYTES:
            raise GuestError("The guest agent's answer to guest-file-read makes no sense.")
        return chunk, read.eof

    async def write_now(self, handle: int, content: bytes) -> None:
        """Write and flush: the content has left the agent when this returns."""
        await self._write(handle, content)
        await self.command("guest-file-flush", {"handle": handle})

    async def close_file(self, handle: int, *, timeout_s: float | None = None) -> None:
        """The last buffered bytes may fail to go to disk: GuestError."""
        await self.command("guest-file-close", {"handle": handle}, timeout_s=timeout_s)

    async def shutdown(self, mode: ShutdownMode = ShutdownMode.POWERDOWN) -> None:
        """Ask the guest to go down; returns once it does not refuse. It is going down then, not off."""
        answer: dict[str, Any] = {}
        async with self.quiet():
            try:
                async with asyncio.timeout(self._timeout_s):
                    wire = await self._connected()
                    await wire.send("guest-shutdown", {"mode": mode.value})
                with contextlib.suppress(TimeoutError, GuestError):  # success is silent, or the port is closed
                    async with asyncio.timeout(_SHUTDOWN_ANSWER_S):
                        answer = await wire.answer()
            except TimeoutError:
                raise DeadlineError("The guest agent does not answer.", command="guest-shutdown") from None
            finally:
                self._drop()
        if "error" in answer:
            _refuse("guest-shutdown", answer["error"])

    async def interfaces(self) -> list[Interface]:
        answer = await self.command("guest-network-get-interfaces")
        return _checked(list[Interface], answer, "guest-network-get-interfaces")

    async def hostname(self) -> str:
        return _checked(_Hostname, await self.command("guest-get-host-name"), "guest-get-host-name").hostname

    async def os_info(self) -> OsInfo:
        return _checked(OsInfo, await self.command("guest-get-osinfo"), "guest-get-osinfo")

    async def set_time(self, unix_s: float | None = None) -> None:
        """Set the guest's wall clock; None takes it from the guest's real-time clock."""
        await self.command("guest-set-time", {} if unix_s is None else {"time": int(unix_s * 1e9)})

    async def freeze_file_systems(self, *, timeout_s: float | None = None) -> int:
        """Flush and hold the guest's file systems; how many. `thaw_file_systems` must follow."""
        return _checked(int, await self.command("guest-fsfreeze-freeze", timeout_s=timeout_s), "guest-fsfreeze-freeze")

    async def thaw_file_systems(self, *, timeout_s: float | None = None) -> int:
        return _checked(int, await self.command("guest-fsfreeze-thaw", timeout_s=timeout_s), "guest-fsfreeze-thaw")

    async def add_ssh_keys(self, user: str, keys: Sequence[str]) -> None:
        """Let the holders of these public keys in as `user`; keys that are there already stay once."""
        try:
            await self.command("guest-ssh-add-authorized-keys", {"username": user, "keys": list(keys)})
        except GuestError as error:
            if error.fields.get("error_class") != "CommandNotFound":
                raise
            await self.shell(ADD_KEYS, user, "\n".join(keys), timeout_s=self._timeout_s)
