"""Chains against a naive model: every read gives the last writer's bytes, and only garbage is collected."""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ramet.storage import LayerStore
from tests.unit.storage.storage_kit import CLUSTER, Change, changes, contents, fresh_store, write

SIZE = 6 * CLUSTER


class Disks(RuleBasedStateMachine):
    """VMs with one disk each: they write, are cloned as a running source is, come and go.

    `top` is each VM's own layer, `model` what it must read.
    """

    vms: Bundle[str] = Bundle("vms")

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.store: LayerStore = self.stack.enter_context(fresh_store())
        self.top: dict[str, str] = {}
        self.model: dict[str, bytearray] = {}
        self.dirty: set[str] = set()

    def teardown(self) -> None:
        self.stack.close()

    @initialize(target=vms)
    def create(self) -> str:
        return self.add("vm0", self.store.create_empty(SIZE).id, bytearray(SIZE))

    @rule(target=vms, name=st.uuids().map(str))
    def create_another(self, name: str) -> str:
        return self.add(name, self.store.create_empty(SIZE).id, bytearray(SIZE))

    @rule(vm=vms, done=changes(SIZE))
    def write(self, vm: str, done: list[Change]) -> None:
        write(self.store.path(self.top[vm]), *done)
        for change in done:
            change.apply(self.model[vm])
        self.dirty.add(vm)

    @rule(target=vms, vm=vms, name=st.uuids().map(str))
    def clone(self, vm: str, name: str) -> str:
        """The source gets a new overlay, unless nothing was written to the one it has; the clone another."""
        shared = self.top[vm]
        if self.store.is_pristine(shared) and (parent := self.store.layer(shared).parent) is not None:
            shared = parent
        else:
            self.top[vm] = self.store.create_overlay(shared).id
        return self.add(name, self.store.create_overlay(shared).id, bytearray(self.model[vm]))

    @rule(vm=consumes(vms))
    def drop(self, vm: str) -> None:
        del self.top[vm], self.model[vm]

    @rule()
    def collect(self) -> None:
        wanted = {layer.id for top in self.top.values() for layer in self.store.chain(top)}
        before = set(self.store.ids())
        removed = self.store.collect(self.top.values())
        assert set(removed) == before - wanted
        assert set(self.store.ids()) == wanted

    @invariant()
    def reads_are_the_last_writers(self) -> None:
        for vm in self.dirty & self.top.keys():
            assert contents(self.store.path(self.top[vm])) == bytes(self.model[vm])
        self.dirty.clear()

    @invariant()
    def users_are_what_chains_say(self) -> None:
        count = self.store.users({vm: [top] for vm, top in self.top.items()})
        chains = [{layer.id for layer in self.store.chain(top)} for top in self.top.values()]
        assert all(count[layer] == sum(layer in chain for chain in chains) for layer in self.store.ids())

    def add(self, vm: str, top: str, model: bytearray) -> str:
        self.top[vm], self.model[vm] = top, model
        self.dirty |= self.top.keys()  # nobody's contents may change by another's birth
        return vm


TestDisks = Disks.TestCase
TestDisks.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
