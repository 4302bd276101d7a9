#!/bin/sh
# Prepares this machine and a virtual environment in .venv; does nothing, in a moment, when all is there.
#
#   tools/setup.sh            as root: installs what is missing of the packages below, adds QEMU's own user,
#                             and opens /dev/net/tun where udev does not
#                             as another user: says what to ask for, and goes on without
#   tools/setup.sh --tests    what only tests need, too
#
# RAMET_SETUP_PACKAGES=no leaves the system's packages, users and devices alone.
set -eu
cd "$(dirname "$0")/.."

# The VMs themselves; their networks (passt is for NAT); images; the native library; the command line.
PACKAGES="qemu-system-x86 qemu-utils ovmf seabios
    dnsmasq-base nftables iproute2 passt
    mmdebstrap busybox-static cpio e2fsprogs fdisk mtools grub-pc-bin grub-common lz4 zstd
    gcc libc6-dev make
    openssh-client"
# A browser, for the test of the Managed Object Browser: half a minute and 300 MB that nobody else pays.
TEST_PACKAGES="chromium chromium-driver"
[ "${1:-}" != --tests ] || PACKAGES="$PACKAGES $TEST_PACKAGES"
QEMU_USER=ramet-qemu
VENV=.venv
STAMP=$VENV/.ramet-setup

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

missing_packages() {
    # One call for all: a name that dpkg has never heard of goes to stderr, and is missing too.
    # shellcheck disable=SC2086
    here=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $PACKAGES 2>/dev/null | sed -n 's/ installed$//p')
    for package in $PACKAGES; do
        printf '%s\n' "$here" | grep -qx "$package" || printf '%s ' "$package"
    done
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" >&2; }

# Names that this release knows: an older Ubuntu has no passt, and that must not keep the rest out.
known_packages() {
    for package in "$@"; do
        if apt-cache show "$package" >/dev/null 2>&1; then printf '%s ' "$package"; else
            say "this release has no package $package: what needs it stays off (see: ramet doctor)"
        fi
    done
}

install_packages() {
    say "installing: $*"
    # shellcheck disable=SC2046
    apt install --no-install-recommends $(known_packages "$@") && return
    say "once more, with fresh package lists"
    apt update || die "apt-get update failed: see above"
    # shellcheck disable=SC2046
    apt install --no-install-recommends $(known_packages "$@") || die "apt-get install failed: see above"
}

prepare_system() {
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "this is neither Debian nor Ubuntu; install what corresponds to: $PACKAGES"
        return
    fi
    missing=$(missing_packages)
    if [ -n "$missing" ] && [ "$(id -u)" = 0 ]; then
        # shellcheck disable=SC2086
        install_packages $missing
    elif [ -n "$missing" ]; then
        say "missing packages; ask for: sudo apt-get install $missing"
    fi
    # udev opens it to all at boot; where there is none it stays root's, and pasta, which is for NAT, runs as nobody.
    if [ "$(id -u)" = 0 ] && [ "$(stat -c %a /dev/net/tun 2>/dev/null)" = 600 ]; then
        say "opening /dev/net/tun to all users, as udev does"
        chmod 0666 /dev/net/tun || say "it stays closed: port groups have no NAT"
    fi
    if [ "$(id -u)" = 0 ] && ! id "$QEMU_USER" >/dev/null 2>&1; then
        say "adding the user $QEMU_USER, as whom QEMU runs"
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$QEMU_USER"
        if getent group kvm >/dev/null; then usermod --append --groups kvm "$QEMU_USER"; fi
    fi
}

find_python() {
    for python in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        command -v "$python" >/dev/null || continue
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        "$python" -c 'import ensurepip, venv' 2>/dev/null && { echo "$python"; return; }
    done
}

make_venv() {
    [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    python=$(find_python)
    if [ -z "$python" ] && [ "$(id -u)" = 0 ] && [ "${RAMET_SETUP_PACKAGES:-yes}" != no ]; then
        install_packages python3-venv
        python=$(find_python)
    fi
    [ -n "$python" ] || die "needs Python 3.11 or newer with venv; ask for: sudo apt-get install python3 python3-venv"
    say "making $VENV with $("$python" --version)"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
}

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

install_project() {
    say "installing the project into $VENV"
    pip install -r requirements.lock
    # The build's own requirement, setuptools, is in the lock: nothing is fetched that is not named there.
    pip install --no-deps --no-build-isolation -e .
}

# What the environment was made from: another checkout, Python or library source makes it again.
fingerprint() {
    {
        pwd
        "$VENV/bin/python" --version 2>&1 || true
        cat requirements.lock pyproject.toml setup.py tools/setup.sh native/*.[chS]
    } | sha256sum
}

[ "${RAMET_SETUP_PACKAGES:-yes}" = no ] || prepare_system
make_venv
if [ "$(cat "$STAMP" 2>/dev/null)" != "$(fingerprint)" ] || [ ! -e src/ramet/_native ]; then
    install_project
    fingerprint >"$STAMP"
fi
