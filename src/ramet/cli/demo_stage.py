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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ramet.cli.output import Cell, Output
from ramet.cli.session import Session
from ramet.errors import NotFoundError, RametError, StateError

if TYPE_CHECKING:
    from ramet.api.client import Client

DAEMON_END_S = 20.0
CANCEL_S = 30.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


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
        try:
            self._cancel()
        except (RametError, OSError) as error:
            out.warn(f"What was under way could not be cancelled: {error}")
        for name in self._left():
            try:
                self._remove(name)
            except (RametError, OSError) as error:
                out.warn(f"{name} could not be removed: {error}")
        if self.temporary:
            self._end(out)

    def _cancel(self) -> None:
        """What an interruption came into: a clone that is being made cannot be removed."""
        for task in self.client.list_tasks():
            ours = self.temporary or task.target.partition(",")[0] in self.made
            if ours and not task.state.is_final:
                with contextlib.suppress(StateError):  # it is past that
                    self.client.cancel_task(task.id)
                self.client.wait_task(task, timeout_s=CANCEL_S)

    def _left(self) -> list[str]:
        """The latest first. In a state of our own everything goes, whoever made it for us."""
        names = list(reversed(self.made))
        if self.temporary:
            with contextlib.suppress(RametError, OSError):
                names += [vm.name for vm in self.client.list_vms() if vm.name not in names]
        return names

    def _remove(self, name: str) -> None:
        from ramet.model.host import Task

        with contextlib.suppress(NotFoundError):
            answer = self.client.remove_vm(name, True)
            if isinstance(answer, Task):
                self.client.wait_task(answer)

    def _end(self, out: Output) -> None:
        """End the daemon, then its folder."""
        try:
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
    with ending_signals():
        try:
            client = session.setup.connect(state_dir, True)
        except BaseException:
            if temporary:
                shutil.rmtree(state_dir, ignore_errors=True)
            raise
        stage = Stage(client, state_dir, temporary, keep)
        try:
            yield stage
        finally:
            with _undisturbed():
                if not keep:
                    stage.clear(session.out)
                client.close()


def _temporary_folder() -> Path:
    """On a disk, as /tmp is memory on some systems, unless TMPDIR says where; short, as sockets live below it."""
    base = "/var/tmp" if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="ramet-demo-", dir=base))


@contextlib.contextmanager
def ending_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the show as Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not leave the stage half cleared; what follows is bounded."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def to_its_answer(ask: Callable[[], T]) -> T:
    """The answer to a request, which is bounded by itself; a signal that ends the show is heard only then.

    What the request begins is known to the daemon from its answer on: before, it could not be cleared.
    """
    heard: list[int] = []
    before = {number: signal.signal(number, lambda signum, frame: heard.append(signum)) for number in ENDING}
    try:
        answer = ask()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt
    return answer
