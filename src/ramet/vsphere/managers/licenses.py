"""Licenses: this server needs none. Clients that ask find one that allows everything and never ends."""

from __future__ import annotations

from typing import Any

from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.types import vim, vmodl

MOID = "LicenseManager"
ASSIGNMENTS_MOID = "LicenseAssignmentManager"
_KEY = "00000-00000-00000-00000-00000"
_EDITION = "ramet"
_NAME = "Ramet, Apache License 2.0"


def license_info() -> Any:
    return vim.LicenseManager.LicenseInfo(
        licenseKey=_KEY,
        editionKey=_EDITION,
        name=_NAME,
        total=0,  # without bound
        used=1,
        costUnit="server",
        properties=[
            vmodl.KeyAnyValue(key="ProductName", value="Ramet"),
            vmodl.KeyAnyValue(key="ProductVersion", value="8.0"),
        ],
    )


class LicenseManager(Mo):
    wire = vim.LicenseManager

    @prop("source")
    def get_source(self) -> Any:
        return vim.LicenseManager.LocalLicense(licenseKeys="")

    @prop("sourceAvailable")
    def get_available(self) -> bool:
        return True

    @prop("licensedEdition")
    def get_edition(self) -> str:
        return _EDITION

    @prop("licenses")
    def get_licenses(self) -> list[Any]:
        return [license_info()]

    @prop("evaluation")
    def get_evaluation(self) -> Any:
        return vim.LicenseManager.EvaluationInfo(properties=[vmodl.KeyAnyValue(key="expirationDate", value="")])

    @prop("licenseAssignmentManager")
    def get_assignments(self) -> Any:
        return self.world.ref(ASSIGNMENTS_MOID)

    @operation("QuerySupportedFeatures", privilege="System.Read")
    async def features(self, call: Call, host: Any = None) -> list[Any]:
        return []

    @operation("QueryLicenseSourceAvailability", privilege="System.Read")
    async def availability(self, call: Call, host: Any = None) -> list[Any]:
        return []

    @operation("QueryLicenseUsage")
    async def usage(self, call: Call, host: Any = None) -> Any:
        return vim.LicenseManager.LicenseUsageInfo(
            source=self.get_source(), sourceAvailable=True, reservationInfo=[], featureInfo=[]
        )

    @operation("CheckLicenseFeature")
    async def check(self, call: Call, featureKey: str, host: Any = None) -> bool:
        return True

    @operation("DecodeLicense", privilege="System.Read")
    async def decode(self, call: Call, licenseKey: str) -> Any:
        if licenseKey == _KEY:
            return license_info()
        raise vmodl.fault.NotSupported(msg="This server needs no license, and knows no other keys.")


class LicenseAssignmentManager(Mo):
    wire = vim.LicenseAssignmentManager

    @operation("QueryAssignedLicenses", privilege="System.Read")
    async def assigned(self, call: Call, entityId: str | None = None) -> list[Any]:
        kind = vim.LicenseAssignmentManager.LicenseAssignment
        known = (ids.HOST, ids.COMPUTE_RESOURCE, MOID)
        entities = [entity for entity in known if entityId in (None, "", entity)]
        return [
            kind(entityId=entity, entityDisplayName=entity, assignedLicense=license_info(), properties=[])
            for entity in entities
        ]
