#!/usr/bin/env python3
"""Instant clones of a VM, each with its guestinfo variables and on the network asked for; with any pyVmomi from 6.7 on.

    SSL_CERT_FILE=ca.pem instant_clone.py HOST PORT USER PASSWORD SOURCE PREFIX COUNT NETWORK GUEST_PASSWORD

Each clone is asked for its variable by a program in its guest, then powered off and destroyed.
"""

import ssl
import sys
import time
import urllib.request

from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim


def find(content, kind, name):
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        return next(one for one in view.view if one.name == name)
    finally:
        view.Destroy()


def clone_spec(name, source, network, number):
    card = next(d for d in source.config.hardware.device if isinstance(d, vim.vm.device.VirtualEthernetCard))
    card.backing = vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(network=network, deviceName=network.name)
    card.connectable.migrateConnect = "connect"
    edit = vim.vm.device.VirtualDeviceSpec(operation="edit", device=card)
    spec = vim.vm.InstantCloneSpec(name=name, location=vim.vm.RelocateSpec(deviceChange=[edit]))
    spec.config = [vim.option.OptionValue(key="guestinfo.number", value=str(number))]
    return spec


def in_guest(content, vm, password, script):
    """What a shell in the guest prints, by way of a file."""
    auth = vim.vm.guest.NamePasswordAuthentication(username="root", password=password)
    manager = content.guestOperationsManager
    program = vim.vm.guest.ProcessManager.ProgramSpec(programPath="/bin/sh", arguments=f"-c '{script}' >/tmp/said")
    pid = manager.processManager.StartProgramInGuest(vm, auth, program)
    while manager.processManager.ListProcessesInGuest(vm, auth, [pid])[0].endTime is None:
        time.sleep(0.05)
    said = manager.fileManager.InitiateFileTransferFromGuest(vm, auth, "/tmp/said")
    url = said.url.replace("*", vm._stub.host.rsplit(":", 1)[0])
    with urllib.request.urlopen(url, context=ssl.create_default_context()) as answer:
        return answer.read().decode().strip()


def main():
    host, port, user, password, source, prefix, count, network, guest_password = sys.argv[1:]
    context = ssl.create_default_context()
    si = SmartConnect(host=host, port=int(port), user=user, pwd=password, sslContext=context)
    content = si.RetrieveContent()
    source = find(content, vim.VirtualMachine, source)
    network = find(content, vim.Network, network)
    print("frozen" if source.runtime.instantCloneFrozen else "running", content.about.apiVersion)
    for number in range(int(count)):
        name = f"{prefix}-{number}"
        began = time.time()
        task = source.InstantClone_Task(spec=clone_spec(name, source, network, number))
        WaitForTask(task, si=si)
        clone = task.info.result
        print(f"{clone.name} in {(time.time() - began) * 1000:.0f} ms")
        said = in_guest(content, clone, guest_password, "vmware-rpctool \"info-get guestinfo.number\"")
        print("said:", said, [net.name for net in clone.network], clone.runtime.powerState)
        WaitForTask(clone.PowerOffVM_Task(), si=si)
        WaitForTask(clone.Destroy_Task(), si=si)
    print("left:", len([vm for vm in find(content, vim.Folder, "vm").childEntity if vm.name.startswith(prefix)]))
    Disconnect(si)


main()
