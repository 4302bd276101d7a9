"""The objects of this room that are always there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ramet.vsphere import ids
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.inventory.browser import DatastoreBrowser
from ramet.vsphere.inventory.compute import ComputeResource, ResourcePool
from ramet.vsphere.inventory.datastore import Datastore
from ramet.vsphere.inventory.environment import EnvironmentBrowser
from ramet.vsphere.inventory.folders import fixed_folders
from ramet.vsphere.inventory.host_system import HostSystem

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World


def objects(world: World) -> list[Mo]:
    return [
        *fixed_folders(world),
        ComputeResource(world, ids.COMPUTE_RESOURCE),
        ResourcePool(world, ids.RESOURCE_POOL),
        HostSystem(world, ids.HOST),
        Datastore(world),
        DatastoreBrowser(world, ids.DATASTORE_BROWSER),
        EnvironmentBrowser(world, ids.ENVIRONMENT_BROWSER),
    ]
