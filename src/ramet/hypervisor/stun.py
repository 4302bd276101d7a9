"""The stun helper: one small process a host that stops a VM, takes its state, forks it, and lets it run on.

    python -m ramet.hypervisor.stun --fd N --record-fd M

N is its end of a socketpair with the daemon. M is another, for records: what the daemon must be able to know when the
helper is killed, but need not wake up for in the middle of a stun. It reads them when a stun has ended, however it did.

It is apart from the daemon so that a stun is never longer for the daemon's other work, and so that a dead daemon leaves
no VM stopped. The dead man's rule: when the daemon's connection ends, a step fails, or the bound passes, the source is
brought back to what it was, and children forked already are killed. One thread a VM, so stuns of several VMs overlap.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

from ramet.errors import InternalError, RametError
from ramet.hypervisor.stun_plan import StunPlan
from ramet.hypervisor.stun_sequence import StunSequence
from ramet.hypervisor.stun_wire import FrameDecoder, Message, receive, send

_RECORDS: Final = frozenset({"began", "forked"})
_SEND_TIMEOUT_S: Final = 5.0
_GIL_SWITCH_S: Final = 0.0005  # the default of 5 ms would be a third of a stun when two VMs are stunned at once
_NICENESS: Final = -5


class Helper:
    """Reads plans from the daemon and runs each in a thread of its own, until the connection ends or it is told to."""

    def __init__(self, daemon: socket.socket, records: socket.socket) -> None:
        self._daemon = daemon
        self._records = records
        self._sending = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads: list[threading.Thread] = []

    def stop(self) -> None:
        """End soon, from a signal handler: every stun under way is called off, which restores its source."""
        os.eventfd_write(self._wake_fd, 1)

    def run(self) -> None:
        decoder = FrameDecoder()
        try:
            self.tell({"what": "ready", "pid": os.getpid()})
            self._read_plans(decoder)
        finally:
            self.stop()
            for thread in self._threads:
                thread.join()
            decoder.close()

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one message to the daemon. Raises OSError when it is gone or does not read."""
        to = self._records if message["what"] in _RECORDS else self._daemon
        with self._sending:
            send(to, message, fds, timeout_s=_SEND_TIMEOUT_S)

    def _read_plans(self, decoder: FrameDecoder) -> None:
        poller = select.poll()
        poller.register(self._daemon, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        while self._wake_fd not in [fd for fd, _ in poller.poll()]:
            messages = receive(self._daemon, decoder)
            if messages is None:
                return
            for message, fds in messages:
                self._start(message, fds)

    def _start(self, message: Message, fds: list[int]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if not self._threads:
            gc.collect()  # automatic collection is off, so that none falls into a stun
        thread = threading.Thread(target=self._serve, args=(message, fds), name=f"stun-{message.get('id')}")
        self._threads.append(thread)
        thread.start()

    def _serve(self, message: Message, fds: list[int]) -> None:
        number = message.get("id")

        def notify(what: str, fields: dict[str, Any], handed: Sequence[int] = ()) -> None:
            self.tell({"id": number, "what": what, **fields}, handed)

        try:
            StunSequence(StunPlan.from_wire(message["plan"], fds), notify, self._wake_fd).run()
        except RametError as exc:
            self._tell_failure(number, exc)
        except Exception as exc:
            self._tell_failure(number, InternalError(f"The stun helper has a bug: {exc!r}.", restored=False))
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def _tell_failure(self, number: Any, error: RametError) -> None:
        with contextlib.suppress(OSError):
            self.tell({"id": number, "what": "failed", "error": error.as_dict()})


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 4 or arguments[::2] != ["--fd", "--record-fd"]:
        sys.exit("The stun helper is started by the daemon, with --fd N --record-fd M.")
    fd, record_fd = int(arguments[1]), int(arguments[3])  # by hand: argparse would be a fifth of the time to start
    gc.disable()
    gc.freeze()
    sys.setswitchinterval(_GIL_SWITCH_S)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    with socket.socket(fileno=fd) as daemon, socket.socket(fileno=record_fd) as records:
        daemon.setblocking(False)
        records.setblocking(False)
        helper = Helper(daemon, records)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is for the daemon, which ends us in order
        signal.signal(signal.SIGTERM, lambda *_: helper.stop())
        helper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
