"""The pure parts: addresses, rules, configurations, and what is read back from files that guests influence."""

from __future__ import annotations

import ipaddress
import json
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import ConflictError, InternalError, UsageError
from ramet.model.host import Network
from ramet.network import addresses, firewall, portgroups
from ramet.network.dhcp import Lease, parse_leases, parse_resolvers, release_packet, render_config
from ramet.network.firewall import Guard
from ramet.network.namespace import namespace_name
from ramet.network.nat import pasta_argv
from ramet.network.privilege import find_problem
from ramet.network.taps import tap_name

networks = st.builds(
    lambda address, prefix: IPv4Network((address, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(4, 32),
)
near = st.builds(
    lambda offset, prefix: IPv4Network((int(IPv4Address("10.192.0.0")) + offset, prefix), strict=False),
    st.integers(0, 1 << 16),
    st.integers(20, 32),
)


@given(st.lists(networks | near, max_size=30))
def test_a_chosen_network_overlaps_nothing(taken: list[IPv4Network]) -> None:
    chosen = IPv4Network(addresses.choose_cidr(taken))
    assert chosen.is_private
    assert not any(chosen.overlaps(net) for net in taken)


@given(st.lists(networks, max_size=5), st.integers(1, 20))
def test_port_groups_made_one_after_another_never_overlap(routes: list[IPv4Network], count: int) -> None:
    made: dict[str, str] = {}
    for number in range(count):
        group = portgroups.complete(Network(name=f"g{number}", dhcp=True), routes, made)
        assert group.cidr is not None
        made[group.name] = group.cidr
    found = [IPv4Network(cidr) for cidr in made.values()]
    assert len(list(ipaddress.collapse_addresses(found))) <= len(found)
    assert sum(net.num_addresses for net in ipaddress.collapse_addresses(found)) == sum(n.num_addresses for n in found)


@given(networks.filter(lambda net: net.prefixlen <= 29))
def test_guests_never_get_the_gateways_address(net: IPv4Network) -> None:
    first, last = addresses.host_range(str(net))
    gateway = addresses.gateway_of(str(net))
    assert net.network_address < gateway < first <= last < net.broadcast_address


def test_a_chosen_network_keeps_away_from_the_hosts_routes() -> None:
    table = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t0000C00A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    routes = addresses.parse_routes(table)
    assert routes == [IPv4Network("10.192.0.0/16"), IPv4Network("192.0.2.0/24")]
    assert addresses.choose_cidr(routes) == "10.193.0.0/22"


@given(st.text(max_size=400))
def test_routes_that_make_no_sense_are_passed_over(text: str) -> None:
    addresses.parse_routes("header\n" + text)


def test_overlaps_and_reserved_networks_are_refused() -> None:
    with pytest.raises(ConflictError, match="port group 'a'"):
        portgroups.complete(Network(name="b", cidr="10.9.0.0/16"), [], {"a": "10.9.8.0/24"})
    same = portgroups.complete(Network(name="a", cidr="10.9.8.0/24"), [], {"a": "10.9.8.0/24"})
    assert same.bridge == portgroups.bridge_name("a")
    for reserved in ("127.0.0.0/24", "169.254.0.0/16", "224.0.0.0/24", "0.0.0.0/1"):
        with pytest.raises(UsageError):
            addresses.check_free("a", reserved, {})


def test_a_port_group_without_services_needs_no_network() -> None:
    group = portgroups.complete(Network(name="bare"), [], {})
    assert group.cidr is None
    assert group.bridge


@given(st.text(min_size=1, max_size=63), st.text(min_size=1, max_size=63))
def test_names_fit_the_kernel(name: str, state: str) -> None:
    assert len(portgroups.bridge_name(name)) == 15
    mac = bytes.fromhex(portgroups.bridge_mac(name).replace(":", ""))
    assert mac[0] & 3 == 2
    assert len(namespace_name(Path("/") / state.replace("\0", ""))) == 14


def test_taps_are_named_after_vm_and_nic() -> None:
    assert tap_name("0123456789ab", 0) == "rt-012345678-0"
    assert len(tap_name("0123456789ab", 99)) == 15
    for vm_id, index in (("", 0), ("../", 0), ("ab", 100), ("ab", -1)):
        with pytest.raises(InternalError):
            tap_name(vm_id, index)


def test_rules_let_out_nat_port_groups_alone() -> None:
    groups = [
        portgroups.complete(Network(name="out", cidr="10.1.0.0/24", nat=True, dhcp=True), [], {}),
        portgroups.complete(Network(name="in", cidr="10.2.0.0/24"), [], {}),
        portgroups.complete(Network(name="alone", cidr="10.3.0.0/24", isolated=True), [], {}),
    ]
    rules = firewall.render(groups)
    forward = rules.split("chain forward {")[1].split("}")[0]
    assert groups[0].bridge in forward
    assert groups[1].bridge not in forward
    assert groups[2].bridge not in rules
    assert forward.count("accept") == 2


guards = st.builds(
    Guard,
    st.frozensets(st.sampled_from(["52:54:00:00:00:01", "52:54:00:00:00:02"])),
    st.frozensets(st.sampled_from(["10.0.0.2", "10.0.0.3"])),
)


@given(guards, guards)
def test_a_guards_change_touches_only_what_differs(old: Guard, new: Guard) -> None:
    lines = firewall.render_guard("rt-a-0", old, new).splitlines()
    assert len(lines) == len(old.macs ^ new.macs) + len(old.addresses ^ new.addresses)
    assert (old == new) == (not lines)


json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.just("guard_mac"),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["nftables", "set", "name", "elem"]), inner)
    ),
    max_leaves=12,
)


@given(json_values)
def test_guards_are_read_from_anything(value: object) -> None:
    firewall.parse_guards(value)


def test_guards_are_read_as_nft_writes_them() -> None:
    elements = [{"concat": ["rt-a-0", "52:54:00:00:00:01"]}, {"concat": ["rt-a-0", "52:54:00:00:00:02"]}]
    text = json.dumps({"nftables": [{"metainfo": {}}, {"set": {"name": "guard_mac", "elem": elements}}]})
    expected = Guard(frozenset({"52:54:00:00:00:01", "52:54:00:00:00:02"}))
    assert firewall.parse_guards(json.loads(text)) == {"rt-a-0": expected}


def test_leases_are_read() -> None:
    text = (
        "1700000000 52:54:00:00:00:01 10.0.0.5 web1 01:52:54:00:00:00:01\n"
        "0 52:54:00:00:00:02 10.0.0.6 * *\n"
        "duid 00:01:00:01\n"
        "1700000000 52:54:00:00:00:03 10.0.0.999 bad *\n"
        "1700000000 52:54:00:00:00:04 10.0.0.7 * zz\n" + "9" * 400 + " 52:54:00:00:00:05 10.0.0.8 * *\n"
    )
    assert parse_leases(text) == {
        "52:54:00:00:00:01": Lease(
            "52:54:00:00:00:01", "10.0.0.5", "web1", 1700000000.0, bytes.fromhex("01525400000001")
        ),
        "52:54:00:00:00:02": Lease("52:54:00:00:00:02", "10.0.0.6", None, 0.0),
    }


@given(st.text(max_size=600))
def test_leases_are_read_from_anything(text: str) -> None:
    for mac, lease in parse_leases(text).items():
        assert mac == lease.mac


def test_resolvers_on_loopback_are_of_no_use_to_guests() -> None:
    text = "search x\nnameserver 127.0.0.53\nnameserver fe80::1\nnameserver 192.0.2.53\nnameserver\nnameserver x\n"
    assert parse_resolvers(text) == ["192.0.2.53"]


def test_only_nat_port_groups_ask_others_and_have_a_router() -> None:
    group = portgroups.complete(Network(name="a", cidr="10.1.0.0/24", dhcp=True), [], {})
    inside = render_config(group, Path("/s/rb"), {"52:54:00:00:00:01": "10.1.0.9"}, ("192.0.2.53",), "dnsmasq")
    assert "server=" not in inside.replace("option:dns-server=", "")
    assert "dhcp-option=option:router\n" in inside
    assert "dhcp-range=10.1.0.2,10.1.0.254,255.255.255.0,3600\n" in inside
    assert "dhcp-host=52:54:00:00:00:01,10.1.0.9\n" in inside
    outside = render_config(group.changed(nat=True), Path("/s/rb"), {}, ("192.0.2.53",), "dnsmasq")
    assert "server=192.0.2.53\n" in outside
    assert "dhcp-option=option:router,10.1.0.1\n" in outside


def test_a_release_says_who_gives_back_what() -> None:
    packet = release_packet(Lease("52:54:00:00:00:01", "10.1.0.9", None, 0, b"\x01\x02"), "10.1.0.1")
    assert len(packet) >= 300
    assert packet[:4] == bytes([1, 1, 6, 0])
    assert packet[12:16] == bytes([10, 1, 0, 9])
    assert packet[28:34] == bytes.fromhex("525400000001")
    assert packet[236:252] == bytes.fromhex("63825363 350107 36040a010001 3d02 01".replace(" ", ""))


@pytest.mark.parametrize(
    ("capabilities", "tun", "tools", "word"),
    [
        (0, "/dev/null", True, "CAP_NET_ADMIN and CAP_SYS_ADMIN"),
        (1 << 12, "/dev/null", True, "lacks CAP_SYS_ADMIN"),
        (1 << 12 | 1 << 21, "/nonexistent", True, "tun"),
        (1 << 12 | 1 << 21, "/dev/null", False, "nftables"),
    ],
)
def test_what_is_missing_is_named(capabilities: int, tun: str, tools: bool, word: str) -> None:
    problem = find_problem(capabilities, Path(tun), lambda _: tools)
    assert problem is not None
    assert word in problem


def test_nothing_missing_is_no_problem() -> None:
    assert find_problem(1 << 12 | 1 << 21, Path("/dev/null"), lambda _: True) is None


def test_pasta_lets_nothing_in_and_keeps_the_hosts_loopback_to_itself() -> None:
    argv = pasta_argv("/usr/bin/pasta", "/usr/bin/setpriv", Path("/run/netns/ramet-x"), apparmor=True)
    text = " ".join(argv)
    for option in ("--tcp-ports none", "--udp-ports none", "--tcp-ns none", "--udp-ns none", "--no-map-gw"):
        assert option in text
    assert "unconfined" in argv
    assert "unconfined" not in pasta_argv("/usr/bin/pasta", "/usr/bin/setpriv", Path("/run/netns/x"), apparmor=False)
