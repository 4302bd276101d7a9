"""The identity script under the shells that guests have, in a tree that looks like a guest's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ramet.errors import GuestError
from ramet.guest.guestfiles import identity_script
from ramet.guest.identity import encode_plan, parse_acknowledgement
from ramet.model.identity import Acknowledgement, Part, Plan, PlannedNic

SHELLS = {"dash": ["/bin/dash"], "busybox": ["/bin/busybox", "sh"], "bash": ["/bin/bash", "--posix"]}
MAC, OLD = "52:54:00:00:00:01", "52:54:00:00:00:02"


class Guest:
    """A tree, and a program's name in it for all that would reach beyond; `calls` has those.

    Without TCP, clock and drivers, which are this machine's.
    """

    def __init__(self, root: Path, shell: list[str]) -> None:
        self.root = root
        self.shell = shell
        for name in ("etc/ssh", "proc/sys/kernel", "sys/class/net/ens3/device", "stubs", "run", "var/lib"):
            (root / name).mkdir(parents=True)
        for name in ("ip", "systemctl", "nmcli", "ifup", "ifdown", "udevadm"):
            self.write(f"stubs/{name}", f'#!/bin/sh\necho "{name} $*" >>{root}/calls\n', 0o755)
        self.write("sys/class/net/ens3/address", f"{MAC}\n")
        self.write("sys/class/net/ens3/ifindex", "2\n")
        self.write("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 old.example.com old\n")

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def run(self, variables: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.shell, "-c", identity_script().decode(), "ramet-identity"],
            env={**variables, "RAMET_TEST_ROOT": os.fspath(self.root)},
            capture_output=True,
            timeout=60,
        )

    def apply(self, plan: Plan) -> Acknowledgement:
        done = self.run(encode_plan(plan, entropy=bytes(32), helper=b""))
        assert not done.stderr, done.stderr
        return parse_acknowledgement(done.stdout)


@pytest.fixture(params=[name for name, argv in SHELLS.items() if Path(argv[0]).exists()])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Guest:
    return Guest(tmp_path, SHELLS[request.param])


@pytest.fixture
def networked(guest: Guest) -> Guest:
    """Busybox takes programs that it has itself before those that PATH names."""
    if "busybox" in guest.shell[0]:
        pytest.skip("busybox would call this machine's own")
    return guest


def plan(*parts: Part, address: str = "dhcp", **more: object) -> Plan:
    gateway = "10.0.0.1" if "/" in address else None
    nic = PlannedNic(id="net0", mac=MAC, old_mac=OLD, address=address, gateway=gateway)
    return Plan(hostname="web", domain="example.org", **{"parts": parts, "nics": (nic,), **more})


def test_names(guest: Guest) -> None:
    asked = plan(Part.HOSTNAME, Part.MACHINE_ID)
    told = guest.apply(asked)
    assert guest.read("etc/hostname") == guest.read("proc/sys/kernel/hostname") == "web\n"
    assert guest.read("etc/hosts") == "127.0.0.1 localhost\n127.0.1.1\tweb.example.org web\n"
    assert guest.read("etc/machine-id") == f"{told.machine_id}\n"
    assert guest.apply(asked).machine_id == told.machine_id
    assert guest.apply(plan(Part.MACHINE_ID)).machine_id != told.machine_id


def test_host_keys_of_other_kinds_are_gone_before_the_acknowledgement(guest: Guest) -> None:
    for name in ("dsa_key", "dsa_key.pub", "ed25519_key", "ed25519_key.pub", "ed25519_key-cert.pub"):
        guest.write(f"etc/ssh/ssh_host_{name}", "the source's\n", 0o600)
    told = guest.apply(plan(Part.SSH_KEYS))
    key = guest.root / "etc/ssh/ssh_host_ed25519_key"
    shown = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True).stdout
    assert told.ssh_keys == {"ed25519": shown.split()[1]}
    assert sorted(path.name for path in key.parent.iterdir()) == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]
    assert key.stat().st_mode & 0o777 == 0o600


def test_slower_kinds_follow(guest: Guest) -> None:
    guest.write("etc/ssh/ssh_host_ecdsa_key", "the source's\n")
    asked = plan(Part.SSH_KEYS)
    guest.apply(asked)
    key = guest.root / "etc/ssh/ssh_host_ecdsa_key"
    subprocess.run(["timeout", "30", "sh", "-c", f"until [ -e {key} ]; do sleep 0.05; done"], check=True)
    assert "PRIVATE KEY" in key.read_text()


def test_kinds_that_were_being_made_in_the_source_are_made_here_and_its_own_process_gives_up(guest: Guest) -> None:
    guest.write("var/lib/ramet/ssh-kinds", "ecdsa\n")
    guest.write("etc/ssh/sshd_config", "")
    guest.write("etc/ssh/ssh_host_backup/key", "a person's\n")
    guest.apply(plan(Part.SSH_KEYS))
    key = guest.root / "etc/ssh/ssh_host_ecdsa_key"
    subprocess.run(["timeout", "30", "sh", "-c", f"until [ -e {key} ]; do sleep 0.05; done"], check=True)
    assert guest.read("etc/ssh/ssh_host_backup/key") == "a person's\n"


def test_a_key_that_is_ready_in_another_generation_is_nobodys(guest: Guest) -> None:
    guest.write("etc/ssh/ssh_host_ecdsa_key", "the source's\n")
    guest.write(
        "stubs/ssh-keygen",
        "#!/bin/sh\nfor file; do :; done\n"
        f"echo generation another >{guest.root}/var/lib/ramet/identity\n"
        f'echo new >"$file"; echo new >"$file.pub"; echo "$file" >{guest.root}/made\n',
        0o755,
    )
    guest.apply(plan(Part.SSH_KEYS))
    made = guest.root / "made"
    subprocess.run(
        ["timeout", "30", "sh", "-c", f"until [ -e {made} ] && [ ! -e $(cat {made}) ]; do sleep 0.05; done"], check=True
    )
    assert not (guest.root / "etc/ssh/ssh_host_ecdsa_key").exists()


def networkd(guest: Guest, text: str) -> None:
    guest.write("etc/systemd/network/80-all.network", text)
    guest.write(
        "run/systemd/netif/links/2", "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/80-all.network\n"
    )


OURS = "etc/systemd/network/05-ramet-ens3.network"


def test_networkd_that_asks_already_is_only_started_anew(networked: Guest) -> None:
    networkd(networked, "[Match]\nName=en*\n[Network]\nDHCP=ipv4\n")
    networked.write("run/systemd/netif/leases/2", "the source's")
    told = networked.apply(plan(Part.ADDRESS))
    assert told.done == (Part.ADDRESS,)
    assert not (networked.root / OURS).exists()
    assert not (networked.root / "run/systemd/netif/leases/2").exists()
    assert "systemctl restart --no-block systemd-networkd.service" in networked.read("calls")


MADE_OF_THE_MAC = (
    "[Match]\nName=en*\n\n# Its words.\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\n[DHCPv4]\nClientIdentifier=mac\n"
)


@pytest.mark.parametrize(
    ("text", "comes_anew", "restarts"),
    [
        (MADE_OF_THE_MAC, True, False),
        (MADE_OF_THE_MAC, False, True),
        (MADE_OF_THE_MAC.replace("RA=no", "RA=yes"), True, True),
        (MADE_OF_THE_MAC.replace("RA=no", "RA=yes") + "[DHCPv6]\nDUIDType=link-layer\n", True, False),
        (MADE_OF_THE_MAC.replace("=mac", "=duid"), True, True),
        (MADE_OF_THE_MAC + "IAID=1\n", True, True),
    ],
)
def test_networkd_goes_on_when_all_it_says_is_made_of_the_new_mac(
    networked: Guest, text: str, comes_anew: bool, restarts: bool
) -> None:
    networkd(networked, text)
    device = "sys/class/net/ens3/device"
    networked.write(f"{device}/driver/bind", "")
    networked.write(f"{device}/net/ens3/address", f"{MAC}\n")
    if comes_anew:
        networked.write("sys/class/net/ens3/address", f"{OLD}\n")
    told = networked.apply(plan(Part.NICS, Part.ADDRESS))
    assert told.done == (Part.NICS, Part.ADDRESS)
    assert (networked.root / device / "driver/unbind").exists() is comes_anew
    assert (networked.root / "calls").exists() is restarts


@pytest.mark.parametrize("text", ["DHCP=no\nAddress=10.0.0.9/24\n", "DHCP=yes\nAddress=10.0.0.9/24\n", "DHCP=ipv6\n"])
def test_a_sources_static_address_does_not_come_back(networked: Guest, text: str) -> None:
    networkd(networked, f"[Match]\nName=en*\n[Network]\n{text}")
    networked.apply(plan(Part.ADDRESS))
    assert "Name=ens3\n\n[Network]\nDHCP=ipv4\n" in networked.read(OURS)


def test_networkd_gets_an_address(networked: Guest) -> None:
    networkd(networked, "[Match]\nName=en*\n[Network]\nDHCP=ipv4\n")
    told = networked.apply(plan(Part.ADDRESS, address="10.0.0.5/24", dns=("10.0.0.2", "10.0.0.3")))
    assert told.addresses == {"net0": "10.0.0.5/24"}
    lines = ["Address=10.0.0.5/24", "Gateway=10.0.0.1", "Domains=example.org", "DNS=10.0.0.2", "DNS=10.0.0.3"]
    assert networked.read(OURS).split("[Network]\n")[1].splitlines() == lines


def test_ifupdown_has_one_stanza_of_the_interface(networked: Guest) -> None:
    networked.write(
        "etc/network/interfaces",
        "auto lo ens3\niface lo inet loopback\n\niface ens3 inet static\n    address 10.0.0.9/24\n\n"
        "auto ens30\niface ens30 inet dhcp\n",
    )
    networked.apply(plan(Part.ADDRESS, address="10.0.0.5/24"))
    text = networked.read("etc/network/interfaces")
    assert "10.0.0.9" not in text
    assert text.startswith("auto lo\niface lo inet loopback\n")
    assert "auto ens30\niface ens30 inet dhcp\n" in text
    assert text.endswith(
        "auto ens3\niface ens3 inet static\n    address 10.0.0.5/24\n    gateway 10.0.0.1\n    dns-search example.org\n"
    )
    assert "ifdown --force ens3" in networked.read("calls")


def test_network_manager_gets_a_connection_of_highest_priority(networked: Guest) -> None:
    (networked.root / "run/NetworkManager").mkdir()
    networked.apply(plan(Part.ADDRESS, address="10.0.0.5/24", dns=("10.0.0.2",)))
    path = networked.root / "etc/NetworkManager/system-connections/ramet-ens3.nmconnection"
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert "method=manual\naddress1=10.0.0.5/24,10.0.0.1\ndns=10.0.0.2;\ndns-search=example.org;\n" in text
    assert "autoconnect-priority=999" in text


def test_an_address_that_is_kept_is_left_alone(networked: Guest) -> None:
    networkd(networked, "[Match]\nName=en*\n[Network]\nAddress=10.0.0.9/24\n")
    assert networked.apply(plan(Part.ADDRESS, address="keep")).done == (Part.ADDRESS,)
    assert not (networked.root / OURS).exists()
    assert not (networked.root / "calls").exists()


def test_what_a_dhcp_client_calls_itself_is_forgotten(networked: Guest) -> None:
    left = ("var/lib/dhcpcd/duid", "var/lib/dhcpcd/secret", "var/lib/dhclient/dhclient--ens3.lease")
    for name in left:
        networked.write(name, "the source's")
    networked.apply(plan(Part.ADDRESS))
    assert not [name for name in left if (networked.root / name).exists()]


def test_a_bridges_port_is_not_given_an_address_beside_the_bridges_own(networked: Guest) -> None:
    (networked.root / "sys/class/net/ens3/master/bridge").mkdir(parents=True)
    with pytest.raises(GuestError, match="ens3 is part of a bridge or a bond"):
        networked.apply(plan(Part.ADDRESS))
    assert networked.apply(plan(Part.ADDRESS, address="keep")).done == (Part.ADDRESS,)


def bind(guest: Guest, mac: str) -> None:
    """What the driver's device looks like once it is bound anew; nothing here binds it."""
    for name in ("unbind", "bind"):
        guest.write(f"sys/class/net/ens3/device/driver/{name}", "")
    guest.write("sys/class/net/ens3/device/net/ens3/address", f"{mac}\n")


def test_a_card_that_no_record_knows_is_told_by_its_driver(guest: Guest) -> None:
    """In the clone of a bare clone the interface has the MAC of the first source."""
    guest.write("sys/class/net/ens3/address", "52:54:00:00:00:77\n")
    bind(guest, MAC)
    assert guest.apply(plan(Part.NICS)).done == (Part.NICS,)
    bind(guest, "52:54:00:00:00:78")
    with pytest.raises(GuestError, match=f"ens3 has the MAC 52:54:00:00:00:78, not {MAC}"):
        guest.apply(plan(Part.NICS))


@pytest.mark.parametrize(("left", "told"), [("", 2), ("ESTAB 0 0 10.0.0.9:22 10.0.0.7:5000", None)])
def test_connections_that_a_kernel_cannot_end_are_not_said_to_be_ended(
    networked: Guest, left: str, told: int | None
) -> None:
    script = f"case $1 in -K) echo one; echo two ;; *) [ -z '{left}' ] || echo '{left}' ;; esac"
    networked.write("stubs/ss", f"#!/bin/sh\n{script}\n", 0o755)
    acknowledged = networked.apply(plan(Part.TCP))
    assert acknowledged.tcp_killed == (told or 0)
    assert any("could not be reset" in warning for warning in acknowledged.warnings) is (told is None)


def test_the_journal_is_found_under_the_new_machine_id(guest: Guest) -> None:
    old = "1" * 32
    guest.write("etc/machine-id", f"{old}\n")
    guest.write(f"var/log/journal/{old}/system.journal", "entries")
    told = guest.apply(plan(Part.MACHINE_ID))
    assert guest.read(f"var/log/journal/{told.machine_id}/system.journal") == "entries"


def test_avahi_does_not_go_on_with_the_sources_name(networked: Guest) -> None:
    networked.write("run/avahi-daemon/pid", "1\n")
    networked.apply(plan(Part.HOSTNAME))
    assert "systemctl try-restart --no-block avahi-daemon.service" in networked.read("calls")


def test_the_sign_is_written_in_place(guest: Guest) -> None:
    guest.write("run/ramet/generation", "0" * 36 + "\n")
    path = guest.root / "run/ramet/generation"
    with path.open() as watched:
        asked = plan(Part.RANDOM)
        done = guest.run(encode_plan(asked, entropy=os.urandom(64)))
        assert b"random reseeded" in done.stdout
        assert watched.read() == f"{asked.generation}\n"


def test_hooks_and_their_deadline(guest: Guest) -> None:
    guest.write(
        "etc/ramet/clone.d/1", f"#!/bin/sh\necho $RAMET_HOSTNAME $RAMET_SEED $RAMET_SSH_KEY >>{guest.root}/ran\n", 0o755
    )
    guest.write("etc/ramet/clone.d/2", "#!/bin/sh\nsleep 60 & sleep 60\n", 0o755)
    done = guest.run(encode_plan(plan(Part.HOOKS, hooks_timeout_s=1), entropy=bytes(32)))
    assert done.returncode == 1
    assert done.stdout.startswith(f"problem hooks the hook {guest.root}/etc/ramet/clone.d/2 did not end".encode())
    assert guest.read("ran") == "web\n"
