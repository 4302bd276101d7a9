"""Where the sockets of one VM are."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunDir:
    """The directory of one VM's sockets. The daemon binds them and hands them to QEMU, all but `vnc`."""

    path: Path

    @property
    def qmp(self) -> Path:
        """The daemon's monitor."""
        return self.path / "qmp"

    @property
    def stun(self) -> Path:
        """The stun helper's monitor."""
        return self.path / "stun"

    @property
    def fork(self) -> Path:
        """Fork requests, served by the library inside QEMU."""
        return self.path / "fork"

    @property
    def agent(self) -> Path:
        return self.path / "agent"

    @property
    def rpc(self) -> Path:
        return self.path / "rpc"

    @property
    def console(self) -> Path:
        return self.path / "console"

    @property
    def zygote(self) -> RunDir:
        """Where the zygote of a frozen VM serves fork requests."""
        return RunDir(self.path / "zygote")

    @property
    def vnc(self) -> Path:
        """Bound by QEMU itself (VNC takes no descriptor), so it has a directory that QEMU's user may write to."""
        return self.path / "display" / "vnc"

    def create(self, uid: int | None = None, gid: int | None = None) -> None:
        """Make the directories; `uid` and `gid` are QEMU's when it runs as a user of its own. Raises OSError."""
        self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.path.chmod(0o711)
        self.vnc.parent.mkdir(mode=0o700, exist_ok=True)
        if uid is not None and gid is not None and os.geteuid() == 0:
            os.chown(self.vnc.parent, uid, gid)

    def remove(self) -> None:
        """Remove the sockets and the directories; what is not ours stays. Raises OSError."""
        for path in (self.qmp, self.stun, self.fork, self.agent, self.rpc, self.console, self.vnc):
            path.unlink(missing_ok=True)
        for directory in (self.vnc.parent, self.path):
            with suppress(FileNotFoundError):
                directory.rmdir()
