"""Images: taken in from files, built again while VMs use them, removed while VMs live on them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ramet.errors import ConflictError, NotFoundError, RametError, UnsupportedError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.requests import BuildImage, CreateVm, DiskRequest, ImportImage, NicRequest, StopVm
from ramet.model.units import MIB
from tests.guest.conftest import BOOT_TIMEOUT_S, Guests

pytestmark = pytest.mark.asyncio(loop_scope="session")

FORMATS = ("qcow2", "raw", "vmdk")


def qemu_img(*argv: object) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True, timeout=60)


def write_disk(path: Path, words: bytes, size_mib: int) -> None:
    """A raw disk that says `words` at its beginning and close to its end."""
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
        for at in (0, (size_mib - 1) * MIB):
            file.seek(at)
            file.write(words.ljust(512, b"\0"))


async def take_in(host: Host, path: Path, **more: object) -> None:
    await finish(host, await host.import_image(ImportImage(path=str(path), **more)))


async def test_disks_of_every_format_are_taken_in_and_outlive_their_image(
    host: Host, guests: Guests, tmp_path: Path
) -> None:
    for number, form in enumerate(FORMATS):
        raw = tmp_path / f"{number}.img"
        write_disk(raw, f"a {form} disk".encode(), 8 + number)
        qemu_img("convert", "-O", form, raw, tmp_path / f"disk-{form}")
        await take_in(host, tmp_path / f"disk-{form}")
        (tmp_path / f"disk-{form}").unlink()
    images = {image.name: image for image in await host.list_images()}
    assert [images[f"disk-{form}"].sizes_bytes for form in FORMATS] == [((8 + n) * MIB,) for n in range(3)]
    # Of its own accord such an image makes a VM with that disk; here it is one of several.
    await finish(host, await host.create_vm(CreateVm(name="own", image="disk-raw", nics=())))
    assert [disk.size_bytes for disk in (await host.show_vm("own")).disks] == [9 * MIB]
    await guests.boot("reader", memory_mib=128, disks=tuple(DiskRequest(image=f"disk-{form}") for form in FORMATS))
    ends = "for d in vda:7 vdb:8 vdc:9; do dd if=/dev/${d%:*} bs=1M skip=${d#*:} count=1 2>/dev/null | head -c 14; done"
    read = await guests.sh("reader", ends)
    assert [word for word in read.split("\0") if word] == ["a qcow2 disk", "a raw disk", "a vmdk disk"]
    for form in FORMATS:
        await host.remove_image(f"disk-{form}")
    await guests.sh("reader", "echo 3 > /proc/sys/vm/drop_caches")
    starts = ends.replace(":7", ":0").replace(":8", ":0").replace(":9", ":0")
    assert "a raw disk" in await guests.sh("reader", starts)
    await guests.clone("reader", "reader-clone")
    await guests.remove("reader")
    assert "a vmdk disk" in await guests.sh("reader-clone", starts)
    await guests.remove("own")
    await guests.remove("reader-clone")
    kept = {layer for image in await host.list_images() for layer in image.layers}
    assert {path.stem for path in (host.settings.state_dir / "layers").glob("img-*")} <= kept


async def test_files_that_are_no_whole_disk_are_refused(host: Host, guests: Guests, tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    qemu_img("create", "-f", "qcow2", base, "4M")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp_path / "child.qcow2")
    (tmp_path / "list.vmdk").write_text('# Disk DescriptorFile\nversion=1\nRW 8192 FLAT "/etc/shadow" 0\n')
    (tmp_path / "empty").touch()
    before = [image.name for image in await host.list_images()]
    for name, error, words in (
        ("child.qcow2", UnsupportedError, "backing file"),
        ("list.vmdk", UnsupportedError, "other files"),
        ("empty", RametError, "empty"),
    ):
        with pytest.raises(error, match=words) as raised:
            await take_in(host, tmp_path / name)
        assert name in raised.value.message
    with pytest.raises(NotFoundError, match="no file"):
        await take_in(host, tmp_path / "nowhere.qcow2")
    with pytest.raises(NotFoundError):
        await take_in(host, tmp_path)
    with pytest.raises(ConflictError, match="micro"):
        await take_in(host, base, name="micro")
    assert [image.name for image in await host.list_images()] == before


async def test_an_image_is_built_again_while_a_vm_boots_from_the_former(host: Host, guests: Guests) -> None:
    with pytest.raises(ConflictError, match="--force"):
        await host.build_image(BuildImage(recipe="micro"))
    await guests.boot("old", memory_mib=128)
    kernel = (await host.show_vm("old")).machine.kernel
    with pytest.raises(ConflictError, match="holds the kernel that"):
        await host.remove_image("micro")
    await finish(host, await host.build_image(BuildImage(recipe="micro", force=True)))
    request = CreateVm(name="new", image="micro", memory_mib=128, nics=(NicRequest(network=None),))
    await finish(host, await host.create_vm(request))
    assert (await host.show_vm("new")).machine.kernel != kernel
    await guests.remove("new")
    await finish(host, await host.stop_vm("old", StopVm(hard=True)))
    await finish(host, await host.start_vm("old"))
    await host.wait_agent("old", BOOT_TIMEOUT_S)
    await guests.remove("old")
