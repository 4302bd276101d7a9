"""A daemon with the surface open and a booted source, for clients in processes of their own."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pyVim import connect

from ramet.api import Client
from ramet.model.access import AddUser, Role, SetVsphere
from ramet.model.requests import BuildImage, CreateNetwork, CreateVm, DiskRequest, NicRequest
from tests.guest.daemon_kit import Daemon, finish, own_daemon, sh

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".venv-clients"
CLIENTS = Path(__file__).parent / "clients"
USER, PASSWORD, GUEST_PASSWORD = "eve", "correct horse", "sesame"
SOURCE, TEMPLATE, NETWORK = "source", "golden", "lab"
LONGEST_S = 180.0


def install() -> None:
    """What others wrote; a moment when it is there."""
    subprocess.run([ROOT / "tools" / "clients.sh"], check=True, timeout=600, stdin=subprocess.DEVNULL)


@dataclass
class Served:
    """A daemon and where its surface is."""

    daemon: Daemon
    client: Client
    port: int

    @property
    def ca_file(self) -> Path:
        return self.daemon.state_dir / "tls" / "ca.pem"

    def run(self, program: str, *arguments: object, env: dict[str, str] | None = None) -> str:
        """What a client prints, that ends well and trusts the authority of this server and no other."""
        trust = {"SSL_CERT_FILE": str(self.ca_file), "REQUESTS_CA_BUNDLE": str(self.ca_file)}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ANSIBLE", "VMWARE"))}
        with tempfile.TemporaryFile() as output:
            ended = subprocess.run(
                [INSTALLED / "bin" / program, *map(str, arguments)],
                env={**kept, **trust, **(env or {})},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=LONGEST_S, check=False,
            )  # fmt: skip
            output.seek(0)
            said = output.read().decode()
        assert ended.returncode == 0, said
        return said

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """The pyVmomi of this process; it leaves sockets to the garbage collector, if it is not told to close them."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        login = {"user": USER, "pwd": PASSWORD}
        si = connect.SmartConnect(host="127.0.0.1", port=self.port, sslContext=context, **login)
        try:
            yield si
        finally:
            connect.Disconnect(si)
            si._stub.DropConnections()


@contextmanager
def served(prefix: str, role: Role = Role.ADMINISTRATOR) -> Iterator[Served]:
    """Without VMs; a user of that role may log in."""
    with own_daemon(prefix) as daemon:
        client = daemon.start()
        shown = client.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0"))
        port = int(re.search(r":(\d+)/", shown.url or "")[1])  # type: ignore[index]
        client.set_vsphere(SetVsphere(on=True, listen=f"127.0.0.1:{port}"))
        client.add_user(AddUser(name=USER, role=role, password=SecretStr(PASSWORD)))
        yield Served(daemon, client, port)


def boot_source(client: Client) -> None:
    """A micro guest with a password, another network for its clones, and one that is off, with a disk, to be copied."""
    finish(client, client.build_image(BuildImage(recipe="micro")))
    client.create_network(CreateNetwork(name=NETWORK, cidr="10.77.0.0/24", dhcp=True))
    request = CreateVm(name=SOURCE, image="micro", memory_mib=128, nics=(NicRequest(),), start=True)
    finish(client, client.create_vm(request))
    disks = (DiskRequest(size_mib=64),)  # Ansible takes a copy's datastore from its template's disk
    template = CreateVm(name=TEMPLATE, image="micro", memory_mib=128, nics=(NicRequest(),), disks=disks)
    finish(client, client.create_vm(template))
    client.wait_agent(SOURCE, 60.0)
    sh(client, SOURCE, f"""
hash=$(echo {GUEST_PASSWORD} | mkpasswd -m sha512 -P 0)
echo "root:$hash:::::::" >/etc/shadow
chmod 600 /etc/shadow
echo root:x:0:0:root:/root:/bin/sh >/etc/passwd
""")
