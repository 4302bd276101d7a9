"""ServiceInstance: what this is, what time it is, and where everything else is to be found."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ramet
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.core.world import World
from ramet.vsphere.types import NEWEST, Support, is_a, make, release, vim

__all__ = ["ServiceInstance", "objects"]

ROOT_FOLDER = "group-d1"
_OURS = uuid.UUID("0e8c3a7e-6a5d-4f3b-9a7c-3f0f5a5c7d10")
_MACHINE_ID = Path("/etc/machine-id")


class ServiceInstance(Mo):
    wire = vim.ServiceInstance

    def __init__(self, world: World, moid: str) -> None:
        super().__init__(world, moid)
        self._about: Any = None
        self._content: Any = None

    @prop("serverClock")
    def server_clock(self) -> datetime:
        return datetime.now(UTC)

    @prop("capability")
    def capability(self) -> Any:
        return make(vim.Capability, provisioningSupported=True, multiHostSupported=True, userShellAccessSupported=False)

    @prop("content")
    def content(self) -> Any:
        """Made once: what there is to refer to is there when the surface opens."""
        if self._content is None:
            self._content = make(vim.ServiceInstanceContent, about=self.about, **self._references())
        return self._content

    def _references(self) -> dict[str, Any]:
        """For each field the object of its type; fields without one are left out."""
        managed: dict[Any, Any] = {}
        for mo in self.world.of_kind(Support.ManagedObject):
            if not is_a(mo.wire, vim.ManagedEntity) and not is_a(mo.wire, vim.Task):
                managed.setdefault(mo.wire, mo.ref)
        found = {"rootFolder": self.world.ref(ROOT_FOLDER)}
        for info in vim.ServiceInstanceContent._GetPropertyList():
            reference = next((ref for wire, ref in managed.items() if is_a(wire, info.type)), None)
            if reference is not None:
                found.setdefault(str(info.name), reference)
        return found

    @property
    def about(self) -> Any:
        if self._about is None:
            self._about = _about(str(self.world.host.settings.state_dir) if self.world.host is not None else "")
        return self._about

    @operation("RetrieveServiceContent", anonymous=True)
    async def retrieve_service_content(self, call: Call) -> Any:
        return self.content()

    @operation("CurrentTime")
    async def current_time(self, call: Call) -> datetime:
        return datetime.now(UTC)

    @operation("RetrieveProductComponents", anonymous=True, partial="an empty list")
    async def retrieve_product_components(self, call: Call) -> Any:
        return vim.ServiceInstance.ProductComponentInfo.Array()


def _about(state_dir: str) -> Any:
    """Clients look at apiType, apiVersion and productLineId, people at the names."""
    version = ".".join(release(NEWEST).split(".")[:3])
    return make(
        vim.AboutInfo,
        name="Ramet",
        fullName=f"Ramet {ramet.__version__} (vSphere API {version})",
        vendor="Ramet",
        version=version,
        build=ramet.__version__,
        localeVersion="INTL",
        localeBuild="000",
        osType="linux-x64",
        productLineId="vpx",
        apiType="VirtualCenter",
        apiVersion=release(NEWEST),
        instanceUuid=str(uuid.uuid5(_OURS, f"{_machine_id()}{state_dir}")),
        licenseProductName="Ramet",
        licenseProductVersion=ramet.__version__,
    )


def _machine_id() -> str:
    try:
        return _MACHINE_ID.read_text().strip()
    except OSError:
        return ""


def objects(world: World) -> list[Mo]:
    return [ServiceInstance(world, "ServiceInstance")]
