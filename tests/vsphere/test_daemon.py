"""The real daemon with its port open: from one start to the next, and an end for which nobody has to wait."""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from urllib.parse import urlsplit

import pytest

from ramet.api import Client
from ramet.model.access import Credentials, SetVsphere, VsphereView
from tests.guest.daemon_kit import own_daemon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def asked(client: Client, path: str) -> tuple[int, bytes]:
    view = client.vsphere()
    assert view.url is not None, view.problem
    context = ssl.create_default_context(cafile=view.ca_file)
    address = urlsplit(view.url)
    connection = http.client.HTTPSConnection(address.hostname or "", address.port, context=context, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_port_is_open_whenever_the_daemon_runs_and_its_end_leaves_nobody_waiting() -> None:
    with own_daemon("rv-") as daemon:
        client = daemon.start()
        assert client.vsphere().on is False
        view = client.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0"))
        assert view.administrator is not None
        ended = waiting_client(view, view.administrator)
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < 30
        assert ended.wait(10)

        client = daemon.start()
        assert asked(client, "/health") == (200, b"ok\n")
        assert client.vsphere().fingerprint_sha256 == view.fingerprint_sha256
        assert [user.name for user in client.list_users()] == ["administrator"]


def waiting_client(view: VsphereView, who: Credentials) -> threading.Event:
    """One that waits for updates for ever; set when it was told otherwise."""
    from pyVim.connect import SmartConnect

    port = urlsplit(view.url or "").port
    context = ssl.create_default_context(cafile=view.ca_file)
    si = SmartConnect(host="127.0.0.1", port=port, user=who.name, pwd=who.password or "", sslContext=context)
    waiting, ended = threading.Event(), threading.Event()

    def wait() -> None:
        collector = si.content.propertyCollector
        waiting.set()
        try:
            collector.WaitForUpdatesEx("")
        except Exception:
            ended.set()
        si._stub.DropConnections()

    threading.Thread(target=wait, daemon=True).start()
    assert waiting.wait(20)
    return ended
