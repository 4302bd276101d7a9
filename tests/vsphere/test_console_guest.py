"""The display of a real VM, by a ticket: RFB up to its picture, beside a clone, until its power is cut. And its picture
alone, kept as a file and fetched by HTTP."""

from __future__ import annotations

import gc
import ssl
from typing import Any

import httpx
import pytest
from pyVim.task import WaitForTask
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from ramet.model.machine import Display
from ramet.model.requests import BuildImage, CloneVm, CreateVm, NicRequest
from tests.guest.daemon_kit import finish
from tests.vsphere.client_kit import PASSWORD, USER, Served, served

pytestmark = [  # pyVmomi leaves sockets to the garbage collector
    pytest.mark.guest,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ANSWER_S = 30.0


class Viewer:
    """As much of RFB as is needed: what comes, in whatever pieces."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._unread = b""

    def read(self, count: int) -> bytes:
        while len(self._unread) < count:
            piece = self._connection.recv(ANSWER_S)
            assert isinstance(piece, bytes)
            self._unread += piece
        found, self._unread = self._unread[:count], self._unread[count:]
        return found

    def greet(self) -> tuple[int, int]:
        """Width and height of the picture."""
        hello = self.read(12)
        assert hello.startswith(b"RFB 003."), hello
        self._connection.send(hello)
        kinds = self.read(self.read(1)[0])
        assert 1 in kinds, "the ticket was what had to be shown"
        self._connection.send(b"\x01")
        assert self.read(4) == bytes(4)
        self._connection.send(b"\x01")  # others may look too
        shape = self.read(24)
        self.read(int.from_bytes(shape[20:]))
        return int.from_bytes(shape[:2]), int.from_bytes(shape[2:4])

    def picture(self, width: int, height: int) -> bytes:
        """The whole of it, raw, 4 bytes a pixel."""
        area = width.to_bytes(2) + height.to_bytes(2)
        self._connection.send(b"\x02\x00\x00\x01" + bytes(4))  # raw alone
        self._connection.send(b"\x03\x00" + bytes(4) + area)
        kind, _, _, count = self.read(4)
        assert (kind, count) == (0, 1)
        assert self.read(12) == bytes(4) + area + bytes(4)
        return self.read(width * height * 4)


def pictures_are_fetched(server: Served, vm: Any, trust: ssl.SSLContext) -> None:
    """As Ansible's module for screenshots and govc's console do: by HTTP Basic."""
    task = vm.CreateScreenshot_Task()
    WaitForTask(task)
    store, closed, path = task.info.result.removeprefix("[").partition("] ")
    assert (store, closed) == ("ramet", "] ")
    url = f"https://127.0.0.1:{server.port}"
    with httpx.Client(base_url=url, verify=trust, auth=(USER, PASSWORD), trust_env=False) as client:
        for asked in (f"/folder/{path}?dcPath=ramet&dsName={store}", f"/screen?id={vm._moId}"):
            answer = client.get(asked)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
            assert answer.content.startswith(b"\x89PNG\r\n\x1a\n")
            assert answer.content.endswith(b"IEND\xaeB`\x82"), "it is whole"


def test_a_real_display_is_seen_by_a_ticket() -> None:
    with served("rk-") as server:
        client = server.client
        finish(client, client.build_image(BuildImage(recipe="micro")))
        request = CreateVm(
            name="tv", image="micro", memory_mib=64, nics=(NicRequest(network="user"),), display=Display.VGA, start=True
        )
        finish(client, client.create_vm(request))
        trust = ssl.create_default_context(cafile=str(server.ca_file))
        with server.connected() as si:
            vm = si.content.searchIndex.FindByInventoryPath("ramet/vm/tv")
            pictures_are_fetched(server, vm, trust)
            url = vm.AcquireTicket("webmks").url
            with connect(url, ssl=trust, subprotocols=[Subprotocol("binary")], proxy=None) as connection:
                viewer = Viewer(connection)
                width, height = viewer.greet()
                assert width * height > 0
                assert len(viewer.picture(width, height)) == width * height * 4
                # Whoever is forked from it now may have its sockets, and must not keep the console open.
                finish(client, client.clone_vm("tv", CloneVm(names=("tv-2",), bare=True)))
                assert len(viewer.picture(width, height)) == width * height * 4
                WaitForTask(vm.PowerOffVM_Task())
                for _ in connection:  # what is still under way
                    pass
                assert connection.close_code == 1000
        finish(client, client.remove_vm("tv-2", force=True))
        finish(client, client.remove_vm("tv", force=True))
    gc.collect()
