#!/bin/sh
# Clients of the vSphere API that others wrote, for the tests: installed unchanged into .venv-clients; nothing is done,
# in a moment, when they are there.
#
#   .venv-clients/bin           Ansible, VMware's Python SDK, the newest pyVmomi, and zeep
#   .venv-clients/collections   Ansible's collections for vSphere
#   .venv-clients/pyvmomi-7.0   what older scripts were written for: a folder for PYTHONPATH
#   .venv-clients/pyvmomi-6.7   and older still
set -eu
cd "$(dirname "$0")/.."

CLIENTS=.venv-clients
NAMED=tests/vsphere/clients
STAMP=$CLIENTS/.stamp
PYTHON=.venv/bin/python

say() { printf 'clients: %s\n' "$*" >&2; }
pip() { "$CLIENTS/bin/python" -m pip --disable-pip-version-check --quiet --quiet "$@"; }

fingerprint() {
    {
        pwd
        "$PYTHON" --version
        cat tools/clients.sh "$NAMED"/*.txt
    } | sha256sum
}

# They come 100 to a package of 300 MB; three are wanted, and what they import.
install_collections() {
    pip download --no-deps --dest "$CLIENTS/download" -r "$NAMED/collections.txt"
    "$CLIENTS/bin/python" - "$CLIENTS"/download/*.whl "$CLIENTS/collections" <<'END'
import sys
import zipfile

wanted = tuple(f"ansible_collections/{name}/" for name in ("community/vmware", "vmware/vmware", "vmware/vmware_rest"))
with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = [name for name in wheel.namelist() if name.startswith(wanted) and "/tests/" not in name]
    wheel.extractall(sys.argv[2], names)
END
    rm -r "$CLIENTS/download"
}

[ "$(cat "$STAMP" 2>/dev/null)" != "$(fingerprint)" ] || exit 0
say "installing clients of the vSphere API into $CLIENTS: about a minute"
rm -rf "$CLIENTS"
"$PYTHON" -m venv "$CLIENTS"
pip install -r "$NAMED/clients.txt"
for version in 7.0 6.7; do
    pip install --no-deps --target "$CLIENTS/pyvmomi-$version" -r "$NAMED/pyvmomi-$version.txt"
done
install_collections
fingerprint >"$STAMP"
