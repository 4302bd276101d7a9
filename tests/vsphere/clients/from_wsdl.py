#!/usr/bin/env python3
"""An instant clone by a client that knows nothing of this API but its WSDL: zeep.

    REQUESTS_CA_BUNDLE=ca.pem from_wsdl.py HOST:PORT USER PASSWORD SOURCE NAME
"""

import sys
from typing import Any

from zeep import Client, xsd

server, user, password, source_name, name = sys.argv[1:]

client = Client(f"https://{server}/sdk/vimService.wsdl")
api = client.service


def made(kind: str, *args: Any, **fields: Any) -> Any:
    return client.get_type(f"{{urn:vim25}}{kind}")(*args, **fields)


def all_vms(view: Any) -> Any:
    wanted = made("PropertySpec", type="VirtualMachine", pathSet=["name", "runtime.powerState", "config"])
    way = made("TraversalSpec", name="in the view", type="ContainerView", path="view", skip=False)
    start = made("ObjectSpec", obj=view, skip=True, selectSet=[way])
    spec = made("PropertyFilterSpec", propSet=[wanted], objectSet=[start])
    found = api.RetrievePropertiesEx(content.propertyCollector, [spec], made("RetrieveOptions")).objects
    return [(one.obj, {value.name: value.val for value in one.propSet}) for one in found]


def ended(task: Any) -> Any:
    """The values of its properties, as soon as it has ended."""
    wanted = made("PropertySpec", type="Task", pathSet=["info.state", "info.result", "info.error"])
    spec = made("PropertyFilterSpec", propSet=[wanted], objectSet=[made("ObjectSpec", obj=task)])
    filter_made = api.CreateFilter(content.propertyCollector, spec, True)
    known: dict[str, Any] = {}
    version = ""
    while known.get("info.state") not in ("success", "error"):
        update = api.WaitForUpdatesEx(content.propertyCollector, version, made("WaitOptions", maxWaitSeconds=60))
        version = update.version
        known |= {one.name: one.val for one in update.filterSet[0].objectSet[0].changeSet}
    api.DestroyPropertyFilter(filter_made)
    return known


content = api.RetrieveServiceContent(made("ManagedObjectReference", "ServiceInstance", type="ServiceInstance"))
print("version", content.about.apiVersion)
session = api.Login(content.sessionManager, user, password)
print("user", session.userName)
view = api.CreateContainerView(content.viewManager, content.rootFolder, ["VirtualMachine"], True)
((source, values),) = [found for found in all_vms(view) if found[1]["name"] == source_name]
print("source", values["runtime.powerState"])

config = [made("OptionValue", key="guestinfo.by", value=xsd.AnyObject(xsd.String(), "zeep"))]
spec = made("VirtualMachineInstantCloneSpec", name=name, location=made("VirtualMachineRelocateSpec"), config=config)
known = ended(api.InstantClone_Task(source, spec))
print("task", known["info.state"])
clone = known["info.result"]
((_, values),) = [found for found in all_vms(view) if found[0]._value_1 == clone._value_1]
keys = {one.key: one.value for one in values["config"].extraConfig}
print("clone", values["name"], values["runtime.powerState"], keys["guestinfo.by"])
print("off", ended(api.PowerOffVM_Task(clone))["info.state"])
print("gone", ended(api.Destroy_Task(clone))["info.state"])
api.Logout(content.sessionManager)
