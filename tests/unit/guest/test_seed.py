"""The cloud-init seed, read back by another implementation of the format."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pycdlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import UsageError
from ramet.guest.iso9660 import SECTOR, cd_image
from ramet.guest.seed import check_ssh_key, seed_iso, write_seed

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@here"


def read(image: bytes, path: str) -> bytes:
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    out = io.BytesIO()
    iso.get_file_from_iso_fp(out, joliet_path=path)
    iso.close()
    return out.getvalue()


def test_names_the_machine_and_lets_the_key_in() -> None:
    image = seed_iso("i-1", "web", ssh_keys=[KEY])
    assert json.loads(read(image, "/meta-data")) == {"instance-id": "i-1", "local-hostname": "web"}
    user_data = read(image, "/user-data").decode()
    assert user_data.startswith("#cloud-config\n")
    assert json.dumps([KEY]) in user_data


def test_is_found_by_its_label() -> None:
    assert seed_iso("i-1", "web")[16 * SECTOR + 40 :].startswith(b"CIDATA ")


def test_the_same_machine_has_the_same_seed(tmp_path: Path) -> None:
    write_seed(tmp_path / "seed.iso", "i-1", "web", ssh_keys=[KEY])
    assert (tmp_path / "seed.iso").read_bytes() == seed_iso("i-1", "web", ssh_keys=[KEY])
    assert [path.name for path in tmp_path.iterdir()] == ["seed.iso"]


def test_user_data_of_ones_own() -> None:
    assert read(seed_iso("i-1", "web", more="#!/bin/sh\necho hi\n"), "/user-data") == b"#!/bin/sh\necho hi\n"
    with pytest.raises(UsageError):
        seed_iso("i-1", "web", more="x", ssh_keys=[KEY])
    with pytest.raises(UsageError):
        seed_iso("i-1", "web", more="x" * (1 << 20) + "x")


@pytest.mark.parametrize(
    "key", ["", "ssh-ed25519", "hello world!", f"{KEY}\nssh-rsa BBBB", "-----BEGIN KEY-----", f'command="x" {KEY}']
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="not a public SSH key"):
        check_ssh_key(key)


def test_a_key_is_trimmed() -> None:
    assert check_ssh_key(f"{KEY}\n") == KEY


@settings(max_examples=25)
@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,8}(-[a-z]{1,8})?", fullmatch=True), st.binary(max_size=5000), max_size=6)
)
def test_any_files_are_read_back(files: dict[str, bytes]) -> None:
    image = cd_image("X", files)
    assert len(image) % SECTOR == 0
    for name, content in files.items():
        assert read(image, f"/{name}") == content


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="names"):
        cd_image("X", {"../x": b""})
    with pytest.raises(ValueError, match="label"):
        cd_image("X" * 17, {})
