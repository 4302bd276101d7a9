"""Where the demo plays: a temporary state folder with a daemon of its own, or the state that the user named.

Cleared at the end, after Ctrl-C and after a failure too: the VMs it made go, and with a folder of its own the daemon
and the folder.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ramet.cli.output import Cell, Output
from ramet.cli.session import Session
from ramet.errors import NotFoundError, RametError

if TYPE_CHECKING:
    from ramet.api.client import Client
    from ramet.model.host import Task

DAEMON_END_S = 20.0
CANCEL_S = 30.0
REMOVE_S = 60.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


@dataclass
class Stage:
    client: Client
    state_dir: Path
    temporary: bool
    keep: bool
    made: list[str] = field(default_factory=list)

    def told(self, out: Output) -> None:
        """Where things are, and what becomes of them."""
        if not self.keep:
            return
        out.say("")
        out.say("The VMs are left running, in ", Cell(str(self.state_dir), "bold"), ". Look around:")
        out.say("  ", Cell(f"ramet --state {self.state_dir} vm ls", "bold"))

    def clear(self, out: Output) -> None:
        """Remove what was made. Bounded, and goes on after a failure, which it tells."""
        out.note("Clearing the stage.")
        for problem in self._cancel():
            out.warn(f"What was under way could not be cancelled: {problem}")
        for name in self._there():
            try:
                self._remove(name)
            except (RametError, OSError) as error:
                out.warn(f"{name} could not be removed: {error}")
        if self.temporary:
            self._end(out)

    def _cancel(self) -> list[str]:
        """What an interruption came into: a clone that is being made cannot be removed. Says what went wrong."""
        problems: list[str] = []
        try:
            under_way = [task for task in self.client.list_tasks() if self._is_ours(task) and not task.state.is_final]
        except (RametError, OSError) as error:
            return [str(error)]
        for task in under_way:
            with contextlib.suppress(RametError, OSError):  # it may be past that: it is waited for
                self.client.cancel_task(task.id)
        deadline = time.monotonic() + CANCEL_S
        for task in under_way:
            try:
                self.client.wait_task(task, timeout_s=max(0.0, deadline - time.monotonic()))
            except (RametError, OSError) as error:
                problems.append(str(error))
        return problems

    def _is_ours(self, task: Task) -> bool:
        return self.temporary or task.target.partition(",")[0] in self.made

    def _there(self) -> list[str]:
        """The latest first. In a state of our own everything goes, whoever made it for us."""
        names = list(reversed(self.made))
        if self.temporary:
            with contextlib.suppress(RametError, OSError):
                names += [vm.name for vm in self.client.list_vms() if vm.name not in names]
        return names

    def _remove(self, name: str) -> None:
        with contextlib.suppress(NotFoundError):
            self.client.finish_task(self.client.remove_vm(name, True), timeout_s=REMOVE_S)

    def _end(self, out: Output) -> None:
        """End the daemon, then its folder; unless there are VMs, which would go on without both."""
        try:
            if left := [vm.name for vm in self.client.list_vms()]:
                out.warn(f"{', '.join(left)} could not be removed: the demo's daemon goes on, in {self.state_dir}.")
                return
            ended = end_process(self.client.host_view().pid, DAEMON_END_S)
        except (RametError, OSError):
            ended = True  # it is not there any more
        self.client.close()
        if ended:
            shutil.rmtree(self.state_dir, ignore_errors=True)
        else:
            out.warn(f"The demo's daemon has not ended; its state is left in {self.state_dir}.")


def end_process(pid: int, timeout_s: float) -> bool:
    """SIGTERM, and wait until it has ended. False when it has not by then."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    except ProcessLookupError:
        return True
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def own_stage(session: Session, *, keep: bool) -> Iterator[Stage]:
    """The stage, cleared on the way out unless `keep`. SIGTERM and SIGHUP end the show as Ctrl-C does."""
    temporary = session.given_state is None
    state_dir = _temporary_folder() if temporary else session.state_dir
    session.out.say("State: ", Cell(str(state_dir), "bold"), " (temporary)" if temporary and not keep else "")
    stages: list[Stage] = []

    def enter() -> None:
        stages.append(Stage(session.setup.connect(state_dir, True), state_dir, temporary, keep))

    with ending_signals():
        try:
            to_its_answer(enter)  # a daemon that starts cannot be ended yet
            yield stages[0]
        finally:
            with _undisturbed():
                for stage in stages:
                    if not keep:
                        stage.clear(session.out)
                    stage.client.close()
                if temporary and not stages:
                    _end_unready(state_dir)


def _end_unready(state_dir: Path) -> None:
    """A daemon that never answered, and its folder."""
    with contextlib.suppress(OSError, ValueError):
        end_process(int((state_dir / "run" / "daemon.lock").read_text()), DAEMON_END_S)
    shutil.rmtree(state_dir, ignore_errors=True)


def _temporary_folder() -> Path:
    """On a disk, as /tmp is memory on some systems, unless TMPDIR says where; short, as sockets live below it."""
    base = "/var/tmp" if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="ramet-demo-", dir=base))


@contextlib.contextmanager
def ending_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the show as Ctrl-C does, unless they are ignored (nohup)."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt, (signal.SIGTERM, signal.SIGHUP)):
        yield


def _undisturbed() -> AbstractContextManager[None]:
    """A second Ctrl-C does not leave the stage half cleared; what follows is bounded."""
    return _handled(signal.SIG_IGN, ENDING)


def to_its_answer(ask: Callable[[], T]) -> T:
    """The answer to a request, which is bounded by itself; a signal that ends the show is heard only then.

    What the request begins is known to the daemon from its answer on: before, it could not be cleared.
    """
    heard: list[int] = []
    try:
        with _handled(lambda signum, frame: heard.append(signum), ENDING):
            return ask()
    finally:
        if heard:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(handler: Handler, numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Inside, these signals go to `handler`, but for those that are ignored: all of them, or none."""
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = _install(dict.fromkeys(heeded, handler))
    try:
        yield
    finally:
        _install(before)


def _install(handlers: Mapping[signal.Signals, Handler]) -> dict[signal.Signals, Handler]:
    """Those of before. None of the signals is heard in between."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    try:
        return {number: signal.signal(number, handler) for number, handler in handlers.items()}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
