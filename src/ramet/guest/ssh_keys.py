"""Let the holders of SSH keys into a guest whose agent has no command for that: a script for its shell."""

ADD_KEYS = """
set -e
home=$(awk -F: -v user="$1" '$1 == user { print $6 }' /etc/passwd)
[ -n "$home" ] || { echo "no user $1" >&2; exit 1; }
umask 077
mkdir -p "$home/.ssh"
file=$home/.ssh/authorized_keys
touch "$file"
printf '%s\\n' "$2" | while IFS= read -r key; do
    grep -qxF -e "$key" "$file" || printf '%s\\n' "$key" >>"$file"
done
chown -R "$1" "$home/.ssh"
"""
"""$1 is the user, $2 the public keys, one a line; keys that are there already stay once."""
