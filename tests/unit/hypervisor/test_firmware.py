"""Finding UEFI firmware by QEMU's descriptors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ramet.hypervisor.firmware import find_uefi


def describe(directory: Path, name: str, *, features: tuple[str, ...] = (), **mapping: Any) -> Path:
    """Write a descriptor and its two images; returns the code's path."""
    directory.mkdir(exist_ok=True)
    code, variables = directory / f"{name}-code.fd", directory / f"{name}-vars.fd"
    code.touch()
    variables.touch()
    descriptor = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(variables), "format": "raw"},
            **mapping,
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": list(features),
    }
    (directory / f"{name}.json").write_text(json.dumps(descriptor))
    return code


def test_the_first_plain_one_is_taken(tmp_path: Path) -> None:
    describe(tmp_path, "40-secure", features=("secure-boot", "requires-smm"))
    describe(tmp_path, "50-memory", device="memory")
    describe(tmp_path, "55-stateless", mode="stateless")
    code = describe(tmp_path, "60-plain", features=("acpi-s3",))
    describe(tmp_path, "70-other")
    found = find_uefi((tmp_path,))
    assert found is not None
    assert found.code == code


def test_the_administrators_directory_shadows_by_name(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "etc", tmp_path / "usr"
    code = describe(mine, "60-plain")
    describe(theirs, "60-plain")
    found = find_uefi((mine, theirs))
    assert found is not None
    assert found.code == code


def test_damaged_descriptors_and_missing_images_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "10.json").write_text("{")
    (tmp_path / "11.json").write_text("[]")
    describe(tmp_path, "20-gone").unlink()
    code = describe(tmp_path, "30-plain")
    found = find_uefi((tmp_path,))
    assert found is not None
    assert found.code == code
