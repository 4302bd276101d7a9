"""What VMs can be made of here: EnvironmentBrowser."""

from __future__ import annotations

from typing import Any

from ramet.vsphere import ids
from ramet.vsphere.core.objects import Mo, prop
from ramet.vsphere.types import vim


class EnvironmentBrowser(Mo):
    wire = vim.EnvironmentBrowser

    @prop("datastoreBrowser")
    def get_browser(self) -> Any:
        return self.world.ref(ids.DATASTORE_BROWSER)
