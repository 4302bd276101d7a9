"""Clients that others wrote, unchanged, each in a process of its own, clone a real guest and talk to the clones."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyVim.task import WaitForTask

from ramet.model.access import Role
from ramet.vsphere import ids
from ramet.vsphere.types import vim
from tests.guest.daemon_kit import finish, sh
from tests.vsphere.client_kit import (
    CLIENTS,
    GUEST_PASSWORD,
    INSTALLED,
    NETWORK,
    PASSWORD,
    SOURCE,
    TEMPLATE,
    USER,
    Served,
    boot_source,
    install,
    served,
)  # fmt: skip

pytestmark = [  # pyVmomi leaves sockets to the garbage collector
    pytest.mark.guest,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BURST = 16


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    install()
    with served("rc-", Role.OPERATOR) as server:
        boot_source(server.client)
        yield server
        gc.collect()


@pytest.fixture
def frozen(server: Served) -> Iterator[Served]:
    finish(server.client, server.client.freeze_vm(SOURCE))
    yield server
    finish(server.client, server.client.thaw_vm(SOURCE))


def _script(server: Served, prefix: str, count: int, folder: str | None = None) -> list[str]:
    env = {"PYTHONPATH": str(INSTALLED / folder)} if folder else {}
    arguments = ("127.0.0.1", server.port, USER, PASSWORD, SOURCE, prefix, count, NETWORK, GUEST_PASSWORD)
    said = server.run("python", "-W", "ignore", CLIENTS / "instant_clone.py", *arguments, env=env)
    print(said)
    return [re.sub(r"in \d+ ms", "in time", line) for line in said.splitlines()]


@pytest.mark.parametrize("folder", [None, "pyvmomi-7.0", "pyvmomi-6.7"])
def test_a_script_clones_the_running_source(server: Served, folder: str | None) -> None:
    assert _script(server, "live", 1, folder) == [
        "running 8.0.3.0",
        "live-0 in time",
        f"said: 0 ['{NETWORK}'] poweredOn",
        "left: 0",
    ]


@pytest.mark.parametrize("folder", [None, "pyvmomi-7.0"])
def test_a_script_clones_the_frozen_source(frozen: Served, folder: str | None) -> None:
    said = _script(frozen, "cold", 2, folder)
    assert said[0] == "frozen 8.0.3.0"
    assert [line for line in said if line.startswith("said")] == [
        f"said: {n} ['{NETWORK}'] poweredOn" for n in range(2)
    ]
    assert said[-1] == "left: 0"


def test_vmwares_own_sdk(server: Served) -> None:
    said = server.run("python", CLIENTS / "automation.py", f"127.0.0.1:{server.port}", USER, PASSWORD, SOURCE, "sdk")
    lines = said.splitlines()
    assert lines[0] == f"source POWERED_ON 128 {SOURCE}"
    assert lines[1].startswith("twice: ")
    assert lines[2].startswith("clone sdk POWERED_ON False 1 ")
    assert lines[3] == "power True"
    assert lines[4].startswith("gone: ")


def test_a_client_that_knows_the_wsdl_alone(server: Served) -> None:
    said = server.run("python", CLIENTS / "from_wsdl.py", f"127.0.0.1:{server.port}", USER, PASSWORD, SOURCE, "wsdl")
    assert said.splitlines() == [
        "version 8.0.3.0", f"user {USER}", "source poweredOn", "task success", "clone wsdl poweredOn zeep",
        "off success", "gone success",
    ]  # fmt: skip


def _play(server: Served, name: str, home: Path) -> Any:
    """What its tasks said."""
    report = home / "report.json"
    with server.connected() as si:
        esxi = si.content.rootFolder.childEntity[0].hostFolder.childEntity[0].host[0].name
    given = {
        "server": "127.0.0.1", "tcp_port": server.port, "user": USER, "password": PASSWORD, "esxi": esxi,
        "source": SOURCE, "template": TEMPLATE, "network": NETWORK, "guest_password": GUEST_PASSWORD,
        "report": str(report),
    }  # fmt: skip
    env = {
        "ANSIBLE_COLLECTIONS_PATH": str(INSTALLED / "collections"),
        "ANSIBLE_HOME": str(home),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
        "ANSIBLE_PYTHON_INTERPRETER": str(INSTALLED / "bin" / "python"),
    }
    said = server.run("ansible-playbook", CLIENTS / name, "-e", json.dumps(given), env=env)
    print(said)
    return json.loads(report.read_text())


def test_ansibles_modules(server: Served, tmp_path: Path) -> None:
    said = _play(server, "community.yml", tmp_path)
    assert [said[name]["changed"] for name in ("made", "again", "moved", "ended", "ended_again", "gone")] == [
        True, False, True, True, False, True,
    ]  # fmt: skip
    assert said["made"]["vm_info"]["vm_name"] == "play"
    assert said["made"]["vm_info"]["datastore"] == [ids.DATASTORE_NAME]
    seen = said["seen"]["instance"]
    assert (seen["hw_name"], seen["hw_power_status"], seen["hw_memtotal_mb"]) == ("play", "poweredOn", 128)
    assert said["moved"]["network_info"][0]["network_name"] == NETWORK
    assert said["ended"]["instance"]["hw_power_status"] == "poweredOff"
    assert said["customized"]["changed"]
    seen = said["seen_customized"]["instance"]
    assert (seen["runtime"]["powerState"], seen["guest"]["toolsRunningStatus"]) == ("poweredOn", "guestToolsRunning")
    config = {option["key"]: option["value"] for option in seen["config"]["extraConfig"]}
    assert config["guestinfo.ic.hostname"] == "play-2"
    finish(server.client, server.client.remove_vm("customized", force=True))
    copied = said["copied"]["instance"]
    assert (copied["hw_memtotal_mb"], copied["hw_processor_count"]) == (160, 2)
    assert copied["hw_eth0"]["ipaddresses"][0] == "10.77.0.61"
    assert sh(server.client, "copied", "hostname; grep nameserver /etc/resolv.conf") == "copied-2\nnameserver 10.77.0.1"
    finish(server.client, server.client.remove_vm("copied", force=True))


def test_ansibles_modules_of_the_automation_api(server: Served, tmp_path: Path) -> None:
    said = _play(server, "rest.yml", tmp_path)
    assert [said[name]["changed"] for name in ("made", "again", "gone")] == [True, False, True]
    assert said["made"]["id"] == said["again"]["id"]
    assert said["made"]["value"]["name"] == "rest"
    assert said["power"]["value"]["state"] == "POWERED_ON"
    # The module's own code sets `changed` for no answer to a change of power: its documentation has 204 as unchanged.
    assert (said["ended"]["changed"], said["ended"]["value"]) == (False, {})
    assert said["ended_again"]["value"]["error_type"] == "ALREADY_IN_DESIRED_STATE"
    assert said["power_off"]["value"]["state"] == "POWERED_OFF"


def test_many_clients_clone_the_frozen_source_at_once(frozen: Served) -> None:
    """Each connects, clones, waits and hangs up."""

    def clone(number: int) -> str:
        with frozen.connected() as si:
            source = si.content.searchIndex.FindByInventoryPath(f"{ids.DATACENTER_NAME}/vm/{SOURCE}")
            wanted = vim.vm.InstantCloneSpec(name=f"burst-{number}", location=vim.vm.RelocateSpec())
            task = source.InstantClone_Task(spec=wanted)
            WaitForTask(task, si=si)
            return str(task.info.result.runtime.powerState)

    with ThreadPoolExecutor(BURST) as clients:
        assert list(clients.map(clone, range(BURST), timeout=120)) == ["poweredOn"] * BURST
    names = {vm.name for vm in frozen.client.list_vms()}
    assert {f"burst-{n}" for n in range(BURST)} <= names
    for n in range(BURST):
        finish(frozen.client, frozen.client.remove_vm(f"burst-{n}", force=True))
