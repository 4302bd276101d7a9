"""How port groups are shown, and how egress rules are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ramet.cli.output import Cell, Column, Output
from ramet.cli.parsing import request
from ramet.errors import UsageError
from ramet.model.host import EgressRule, Network
from ramet.model.views import VmView

_RULE = re.compile(
    r"^(?P<cidr>any|[0-9.]+(?:/[0-9]+)?)(?::(?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?)?(?:/(?P<protocol>[a-z]+))?$"
)


def egress_rule(text: str, action: str) -> EgressRule:
    """'10.0.0.0/8:443/tcp', '192.0.2.7', 'any:5000-5010/udp', 'any/icmp' to a rule. Raises UsageError."""
    found = _RULE.match(text.strip().lower())
    if found is None:
        raise UsageError(
            f"--{action} {text!r} is not understood.", hint="Write it like 10.0.0.0/8:443/tcp, 192.0.2.7 or any:53/udp."
        )
    fields: dict[str, object] = {
        "action": action,
        "cidr": "0.0.0.0/0" if found["cidr"] == "any" else found["cidr"],
        "protocol": found["protocol"],
    }
    if found["first"]:
        fields["ports"] = (int(found["first"]), int(found["last"] or found["first"]))
    return request(EgressRule, fields)


def egress_rules(allow: Iterable[str] | None, deny: Iterable[str] | None) -> list[EgressRule]:
    return [egress_rule(text, "deny") for text in deny or ()] + [egress_rule(text, "allow") for text in allow or ()]


def present_rule(network: Network, text: str) -> EgressRule:
    """The rule that is written so, whichever it does. The daemon says it when there is none."""
    wanted = egress_rule(text, "allow")
    return next((rule for rule in network.egress if rule.text == wanted.text), wanted)


def kind(network: Network) -> str:
    """One word for how its guests are kept."""
    if network.uplink:
        return f"uplink {network.uplink}"
    return "fenced" if network.fenced else "isolated" if network.isolated else "open"


def egress(network: Network) -> str:
    """What leaves it, in a few words."""
    if not network.nat and not network.uplink:
        return "nothing"
    rules = f", {len(network.egress)} rule{'s' if len(network.egress) != 1 else ''}" if network.egress else ""
    return ("everything" if network.egress_default == "allow" else "nothing") + rules


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def networks(out: Output, items: Sequence[Network]) -> None:
    columns = tuple(Column(name) for name in ("cidr", "dhcp", "nat", "kind", "egress"))
    rows = [(n.name, n.cidr or "", _yes(n.dhcp), _yes(n.nat), kind(n), egress(n)) for n in items]
    out.table(
        (Column("name", style="bold"), *columns),
        rows,
        empty="No port groups. Make one: ramet network create lab --cidr 10.9.0.0/24 --dhcp",
    )


def network_page(out: Output, network: Network, vms: Sequence[VmView]) -> None:
    """One port group: what it is, its rules in the order in which they are asked, and who is plugged in."""
    out.line(Cell(network.name, "bold"), "  ", kind(network))
    facts = [("cidr", network.cidr or ""), ("dhcp", _yes(network.dhcp)), ("nat", _yes(network.nat))]
    out.facts([*facts, ("bridge", network.bridge), ("egress", egress(network))], indent=2)
    if network.egress:
        out.line("")
        out.line(Cell("Egress", "bold"))
        for rule in sorted(network.egress, key=lambda rule: rule.action != "deny"):
            out.line("  ", Cell(f"{rule.action:5}", "red" if rule.action == "deny" else "green"), f"  {rule.text}")
        out.line("  ", f"{network.egress_default:5}", "  everything else")
    members = [(vm, nic) for vm in vms for nic in vm.nics if nic.network == network.name]
    if members:
        out.line("")
        out.line(Cell("Plugged in", "bold"))
        for vm, nic in members:
            link = "" if nic.connected else "  link down"
            out.line("  ", Cell(vm.name, "bold"), f"  {nic.id}  {nic.mac}  {', '.join(nic.addresses)}{link}".rstrip())
