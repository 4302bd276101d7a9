"""Names and values for many clones out of one request."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ramet.clone.customize import custom_plan, customization, expand, identity_for, numbered_names
from ramet.errors import UsageError
from ramet.model.identity import (
    Customization,
    IdentityState,
    NicAddress,
    Part,
    TcpPolicy,
    check_domain,
    check_hostname,
    hostname_from,
)
from ramet.model.machine import Inside, Machine, Nic, Vm
from ramet.model.requests import CloneVm
from ramet.model.units import check_mac, check_name

SOURCE = Machine(name="web", nics=(Nic(id="net0", mac="52:54:00:00:00:01"), Nic(id="net1", mac="52:54:00:00:00:02")))
CLONE = SOURCE.changed(
    name="web-3", nics=(Nic(id="net0", mac="52:54:00:00:01:01"), Nic(id="net1", mac="52:54:00:00:01:02"))
)
NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("web-{n}", "web-7"),
        ("web-{n:03}", "web-007"),
        ("10.0.0.{n+9}/24", "10.0.0.16/24"),
        ("{n+9:03}", "016"),
        ("{name}.example", "web-7.example"),
        ("plain", "plain"),
    ],
)
def test_fields_are_filled_in(text: str, becomes: str) -> None:
    assert expand(text, 7, "web-7") == becomes


@pytest.mark.parametrize(
    "text", ["{m}", "{n", "n}", "{}", "{n:x}", "{n+}", "{name+1}", "{n!r}", "{n.__class__}", "{{n}}"]
)
def test_other_braces_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        expand(text, 1, "a")


@given(st.integers(1, 256), st.integers(0, 10_000), st.sampled_from(["a{n}", "a-{n:04}", "{n}-b", "x{n+3}"]))
def test_counted_names_are_distinct_and_as_many(count: int, first: int, template: str) -> None:
    found = numbered_names(CloneVm(name=template, count=count, first=first))
    assert len({name for _, name in found}) == count
    assert [number for number, _ in found] == list(range(first, first + count))


def test_names_that_are_given_are_counted_too() -> None:
    assert numbered_names(CloneVm(names=("a", "b"))) == ((1, "a"), (2, "b"))


@pytest.mark.parametrize(
    ("request_", "says"),
    [(CloneVm(names=("a", "a")), "twice"), (CloneVm(name="a b{n}", count=2), "usable name")],
)
def test_names_that_cannot_be(request_: CloneVm, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        numbered_names(request_)


def test_values_are_each_clones_own() -> None:
    values = {
        "hostname": "Web{n}",
        "domain": "example.org.",
        "dns": "10.0.0.1+10.0.0.2",
        "address": "10.0.0.{n}/24",
        "gateway": "10.0.0.254",
        "net1.address": "keep",
    }
    made = customization(values, 3, "web-3")
    assert (made.hostname, made.domain, made.dns) == ("web3", "example.org", ("10.0.0.1", "10.0.0.2"))
    assert made.nics == {
        "net0": NicAddress(address="10.0.0.3/24", gateway="10.0.0.254"),
        "net1": NicAddress(address="keep"),
    }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"colour": "red"}, "no customization 'net0.colour'|no customization 'colour'"),
        ({"address": "10.0.0.3"}, "prefix"),
        ({"address": "10.0.0.{n}/24"}, "10.0.0.300"),
        ({"gateway": "10.0.0.1"}, "no address"),
        ({"hostname": "a_b"}, "hostname"),
        ({"dns": "here"}, "here"),
        ({"domain": "a..b"}, "domain"),
    ],
)
def test_values_that_cannot_be_name_what_is_wrong(values: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        customization(values, 300, "x")


def test_a_plan_is_complete() -> None:
    request = CloneVm(
        names=("web-3",), without=(Part.SSH_KEYS,), tcp=TcpPolicy.DROP, customize={"net1.address": "keep"}
    )
    identity = identity_for(request, CLONE, SOURCE, 1, NONE)
    plan = identity.plan
    assert plan is not None
    assert identity.holds_links_down
    assert plan.hostname == "web-3"
    assert plan.parts == tuple(part for part in Part if part is not Part.SSH_KEYS)
    assert plan.tcp is TcpPolicy.DROP
    assert [(nic.id, nic.mac, nic.old_mac, nic.address) for nic in plan.nics] == [
        ("net0", "52:54:00:00:01:01", "52:54:00:00:00:01", "dhcp"),
        ("net1", "52:54:00:00:01:02", "52:54:00:00:00:02", "keep"),
    ]


def test_two_plans_are_of_two_generations() -> None:
    one, two = (identity_for(CloneVm(names=("a",)), CLONE, SOURCE, 1, NONE).plan for _ in range(2))
    assert one
    assert two
    assert one.generation != two.generation


def test_a_nic_in_a_fence_stays_as_it_was_and_so_do_its_connections() -> None:
    plan = identity_for(CloneVm(names=("a",)), CLONE, SOURCE, 1, frozenset({"net0"})).plan
    assert plan is not None
    assert [nic.id for nic in plan.nics] == ["net1"]
    assert plan.tcp is TcpPolicy.KEEP


def test_a_bare_clone_has_no_plan_and_is_not_held_down() -> None:
    identity = identity_for(CloneVm(names=("a",), bare=True), CLONE, SOURCE, 1, NONE)
    assert identity.state is IdentityState.BARE
    assert identity.plan is None
    assert not identity.holds_links_down


def test_a_nic_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="net5"):
        identity_for(CloneVm(names=("a",), customize={"net5.address": "dhcp"}), CLONE, SOURCE, 1, NONE)


@given(st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?", fullmatch=True))
def test_every_name_gives_a_hostname(name: str) -> None:
    assert check_hostname(hostname_from(name)) == hostname_from(name)


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (check_hostname, "web"),
        (check_domain, "example.org"),
        (check_name, "web"),
        (check_mac, "52:54:00:00:00:01"),
    ],
)
def test_a_line_ends_no_name(check: Callable[[str], str], good: str) -> None:
    """These go into the lines of other programs' files."""
    assert check(good) == good
    with pytest.raises(ValueError, match=r"\\n"):
        check(f"{good}\n")


def test_hooks_that_may_outlast_the_identity_are_a_mistake() -> None:
    with pytest.raises(ValidationError, match="part of the identity"):
        CloneVm(names=("a",), hooks_timeout_s=300)
    assert CloneVm(names=("a",), hooks_timeout_s=300, identity_timeout_s=400).hooks_timeout_s == 300
    assert CloneVm(names=("a",), identity_timeout_s=5).identity_timeout_s == 5
    assert CloneVm(names=("a",), bare=True, hooks_timeout_s=300).bare


OWN, SOURCES = "52:54:00:00:00:02", "52:54:00:00:00:01"


@pytest.mark.parametrize(
    ("known", "old"),
    [
        ({SOURCES}, SOURCES),  # its guest has not noticed yet that the card is another
        ({OWN}, OWN),
        ({OWN, SOURCES}, OWN),
        (set(), OWN),
    ],
)
def test_a_clone_that_runs_is_told_how_its_guest_knows_the_card(known: set[str], old: str) -> None:
    vm = Vm(machine=Machine(name="Web-1", nics=(Nic(id="net0", mac=OWN),)))
    values = Customization(nics={"net0": NicAddress(address="10.0.0.5/24", gateway="10.0.0.1")})
    plan = custom_plan(vm, {"net0": SOURCES}, known, values)
    (nic,) = plan.nics
    assert (nic.mac, nic.old_mac, nic.address, nic.gateway) == (OWN, old, "10.0.0.5/24", "10.0.0.1")
    assert (plan.hostname, plan.parts) == ("web-1", tuple(Part))


def test_every_customization_is_of_a_generation_of_its_own() -> None:
    """What a guest has done for one it does not do again."""
    vm = Vm(machine=Machine(name="web"))
    assert len({custom_plan(vm, {}, (), Customization()).generation for _ in range(2)}) == 2


def test_in_a_fence_a_card_stays_its_sources() -> None:
    fenced = Nic(id="net0", network="fenced", inside=Inside(network="default"))
    assert custom_plan(Vm(machine=Machine(name="web", nics=(fenced,))), {}, (), Customization()).nics == ()
