#!/usr/bin/env python3
"""VMware's automation SDK: list, get, clone and delete VMs.

    REQUESTS_CA_BUNDLE=ca.pem automation.py HOST:PORT USER PASSWORD SOURCE NAME
"""

import sys

import requests
from com.vmware.vapi.std.errors_client import AlreadyExists, NotFound
from com.vmware.vcenter.vm_client import Power
from com.vmware.vcenter_client import VM, Datastore, Folder, ResourcePool
from vmware.vapi.vsphere.client import create_vsphere_client

server, user, password, source_name, name = sys.argv[1:]
client = create_vsphere_client(server=server, username=user, password=password, session=requests.session())

(source,) = client.vcenter.VM.list(VM.FilterSpec(names={source_name}))
print("source", source.power_state, source.memory_size_mib, client.vcenter.VM.get(source.vm).name)
placement = VM.InstantClonePlacementSpec(
    folder=client.vcenter.Folder.list(Folder.FilterSpec(type=Folder.Type.VIRTUAL_MACHINE))[0].folder,
    resource_pool=client.vcenter.ResourcePool.list(ResourcePool.FilterSpec())[0].resource_pool,
    datastore=client.vcenter.Datastore.list(Datastore.FilterSpec())[0].datastore,
)
spec = VM.InstantCloneSpec(source=source.vm, name=name, placement=placement)
clone = client.vcenter.VM.instant_clone(spec)
try:
    client.vcenter.VM.instant_clone(spec)
except AlreadyExists as refused:
    print("twice:", refused.messages[0].default_message)
info = client.vcenter.VM.get(clone)
print("clone", info.name, info.power_state, info.instant_clone_frozen, len(info.nics), info.identity.instance_uuid)
client.vcenter.vm.Power.stop(clone)
print("power", client.vcenter.vm.Power.get(clone).state == Power.State.POWERED_OFF)
client.vcenter.VM.delete(clone)
try:
    client.vcenter.VM.get(clone)
except NotFound as gone:
    print("gone:", gone.messages[0].default_message)
