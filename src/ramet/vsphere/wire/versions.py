"""What /sdk/vimServiceVersions.xml answers: the newest version, and every older one. A client takes what it knows."""

from __future__ import annotations

from ramet.vsphere.types import NAMESPACE, NEWEST, prior_versions, release

__all__ = ["versions_xml"]


def versions_xml() -> bytes:
    prior = "".join(f"<version>{release(version)}</version>" for version in prior_versions())
    return (
        '<?xml version="1.0" encoding="UTF-8" ?>\n'
        '<namespaces version="1.0">'
        f"<namespace><name>{NAMESPACE}</name><version>{release(NEWEST)}</version>"
        f"<priorVersions>{prior}</priorVersions></namespace></namespaces>\n"
    ).encode()
