"""A trial in a Debian guest: packages, services, files and ports, as people change them; and how long looking takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.requests import CreateVm, ImportImage, NicRequest
from ramet.model.trying import TryCommand, TryReport
from ramet.testing.images import debian_image
from tests.guest.conftest import Guests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.asyncio(loop_scope="session")]

BOOT_S = 400.0
CONTROL = """\
Package: ramet-hello
Version: {version}
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: nothing
"""
SERVICE = """\
[Service]
ExecStart=/usr/bin/perl -MIO::Socket::INET -e \\
    'my $$s = IO::Socket::INET->new(LocalPort => 8123, Listen => 1) or die; sleep 1000'
"""
CHANGE = """
set -e
dpkg -i /root/hello_2.deb
cp /root/hello.service /etc/systemd/system/hello.service
systemctl daemon-reload
systemctl start hello.service
systemctl stop serial-getty@ttyS0.service
systemctl start no-such.service || echo refused >&2
for _ in 1 2 3 4 5 6 7 8 9 10; do grep -q :1FBB /proc/net/tcp && break; sleep 1; done
rm /etc/motd
"""


def package(folder: Path, version: str) -> Path:
    root = folder / f"hello_{version}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(CONTROL.format(version=version))
    (root / "opt" / "hello").mkdir(parents=True)
    (root / "opt" / "hello" / "version").write_text(version)
    target = folder / f"hello_{version}.deb"
    argv = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(target)]
    subprocess.run(argv, check=True, timeout=60, stdout=subprocess.DEVNULL)
    return target


@pytest_asyncio.fixture(loop_scope="session")
async def debian(host: Host, guests: Guests, tmp_path: Path) -> str:
    """Up, with the first version of a package installed and the second one at hand."""
    image = await debian_image(Path(__file__).parents[2] / ".state" / "debian")
    if "debian" not in {one.name for one in await host.list_images()}:
        await finish(host, await host.import_image(ImportImage(path=str(image.disk), name="debian")))
    request = CreateVm(name="deb", image="debian", memory_mib=512, nics=(NicRequest(),), start=True)
    guests._made.append("deb")
    await finish(host, await host.create_vm(request))
    await host.wait_agent("deb", BOOT_S)
    await guests.sh("deb", "systemctl is-system-running --wait", check=False)
    for version in ("1", "2"):
        await guests.push("deb", package(tmp_path, version), f"/root/hello_{version}.deb")
    (tmp_path / "service").write_text(SERVICE)
    await guests.push("deb", tmp_path / "service", "/root/hello.service")
    await guests.sh("deb", "dpkg -i /root/hello_1.deb; touch /etc/motd; sync")
    return "deb"


async def attempt(host: Host, script: str) -> TryReport:
    task = await host.try_command("deb", TryCommand(argv=("sh", "-c", script)))
    return TryReport.model_validate(await finish(host, task))


async def test_a_change_of_many_kinds_is_told(host: Host, guests: Guests, debian: str) -> None:
    nothing = await attempt(host, "true")
    print(nothing.model_dump_json(indent=1))
    report = await attempt(host, CHANGE)
    print(report.model_dump_json(indent=1))
    assert report.exit_code == 0
    found = report.changes
    assert found is not None
    packages = {package.name: package for package in found.packages}
    assert (packages["ramet-hello"].change, packages["ramet-hello"].after) == ("upgraded", "2")
    services = {service.name: service.change for service in found.services}
    assert services["hello.service"] == "started"
    assert services["serial-getty@ttyS0.service"] == "stopped"
    (port,) = [port for port in found.ports if port.change == "opened"]
    assert (port.protocol, port.port, port.process) == ("tcp", 8123, "perl")
    files = {file.path: file.change for file in found.files}
    assert files["/opt/hello/version"] == "changed"
    assert files["/etc/systemd/system/hello.service"] == "created"
    assert files["/etc/motd"] == "deleted"
    assert await guests.sh("deb", "dpkg-query -W -f '${Version}' ramet-hello; ls /etc/motd") == "1/etc/motd"

    assert nothing.changes is not None
    assert [file.path for file in nothing.changes.files] == []
    assert nothing.changes.is_empty
