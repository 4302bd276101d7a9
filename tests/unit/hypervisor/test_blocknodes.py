"""Names and order of block nodes."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ramet.hypervisor.blocknodes import DiskChain, LayerFile, distinct_layers, file_node, format_node
from ramet.model.machine import Disk

LAYER_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)


@given(LAYER_IDS)
def test_node_names_fit_and_are_what_qemu_takes(layer_id: str) -> None:
    for name in (file_node(layer_id), format_node(layer_id)):
        assert len(name) <= 31
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name)


@given(st.lists(LAYER_IDS, unique=True))
def test_node_names_tell_layers_apart(layer_ids: list[str]) -> None:
    names = [name(layer_id) for layer_id in layer_ids for name in (file_node, format_node)]
    assert len(set(names)) == len(names)


def test_parents_come_before_their_children_and_once() -> None:
    def chain(disk_id: str, *layers: str) -> DiskChain:
        files = tuple(LayerFile(layer, Path(layer), writable=n == 0) for n, layer in enumerate(layers))
        return DiskChain(Disk(id=disk_id, layer=layers[0], size_bytes=1), files)

    found = distinct_layers([chain("disk0", "a", "b", "base"), chain("disk1", "c", "b", "base")])
    assert [(layer.id, backing) for layer, backing in found] == [
        ("base", None),
        ("b", "base"),
        ("a", "b"),
        ("c", "b"),
    ]
