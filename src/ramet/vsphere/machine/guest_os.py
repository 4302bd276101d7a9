"""Guests' operating systems, by the ids of the schema."""

from __future__ import annotations

from typing import Any

from ramet.model.machine import Machine

NAMES = {
    "debian12_64Guest": "Debian GNU/Linux 12 (64-bit)",
    "debian11_64Guest": "Debian GNU/Linux 11 (64-bit)",
    "debian10_64Guest": "Debian GNU/Linux 10 (64-bit)",
    "ubuntu64Guest": "Ubuntu Linux (64-bit)",
    "rhel9_64Guest": "Red Hat Enterprise Linux 9 (64-bit)",
    "rhel8_64Guest": "Red Hat Enterprise Linux 8 (64-bit)",
    "centos9_64Guest": "CentOS 9 (64-bit)",
    "fedora64Guest": "Red Hat Fedora (64-bit)",
    "rockylinux_64Guest": "Rocky Linux (64-bit)",
    "almalinux_64Guest": "AlmaLinux (64-bit)",
    "sles15_64Guest": "SUSE Linux Enterprise 15 (64-bit)",
    "opensuse64Guest": "SUSE openSUSE (64-bit)",
    "freebsd14_64Guest": "FreeBSD 14 or later versions (64-bit)",
    "other6xLinux64Guest": "Other 6.x or later Linux (64-bit)",
    "other5xLinux64Guest": "Other 5.x Linux (64-bit)",
    "otherLinux64Guest": "Other Linux (64-bit)",
    "windows2019srvNext_64Guest": "Microsoft Windows Server 2022 (64-bit)",
    "windows11_64Guest": "Microsoft Windows 11 (64-bit)",
    "otherGuest64": "Other (64-bit)",
}
_BY_DISTRIBUTION = {
    "ubuntu": "ubuntu64Guest",
    "rhel": "rhel9_64Guest",
    "centos": "centos9_64Guest",
    "fedora": "fedora64Guest",
    "rocky": "rockylinux_64Guest",
    "almalinux": "almalinux_64Guest",
    "sles": "sles15_64Guest",
    "opensuse-leap": "opensuse64Guest",
    "freebsd": "freebsd14_64Guest",
    "mswindows": "windows2019srvNext_64Guest",
}
_OTHER = "other6xLinux64Guest"


def configured_id(machine: Machine, chosen: str | None) -> str:
    """What a client has said, else what the image's name lets guess."""
    image = (machine.image or "").lower()
    return chosen or ("debian12_64Guest" if "debian" in image else _guess(image.partition("-")[0]))


def running_id(os: Any) -> str:
    """By what the guest's agent says of its system."""
    version = (os.version_id or "").partition(".")[0]
    debian = f"debian{version}_64Guest"
    if os.id == "debian":
        return debian if debian in NAMES else "debian12_64Guest"
    return _guess(os.id or "")


def full_name(guest_id: str) -> str:
    return NAMES.get(guest_id, guest_id)


def family(guest_id: str) -> str:
    return "windowsGuest" if guest_id.startswith("win") else "linuxGuest"


def _guess(distribution: str) -> str:
    return _BY_DISTRIBUTION.get(distribution, _OTHER)
