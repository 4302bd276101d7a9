"""POSIX sh that runs in guests, by the guest agent. Whatever a client said comes as an argument or on standard input.

LOGIN is in front of everything: user name in $1, the password is the first line of its input; then it becomes that user
and executes the rest of its arguments, which read the rest of the input. The password is in no argument and in no file.
Who may check a password: PAM's own helper, else whatever there is that has crypt(3). 96 and 97 are its own exit codes,
with the reason on standard error.
"""

from __future__ import annotations

REFUSED = 97
"""No such user, or another password."""
UNABLE = 96
"""The guest has nothing to check a password with, or nothing to become a user with."""

ENVIRON = r"""
LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
"""

LOGIN = ENVIRON + r"""
user=$1; shift
IFS= read -r password || :
refuse() { echo "ramet: $1" >&2; exit 97; }
unable() { echo "ramet: $1" >&2; exit 96; }
entry=$(getent passwd "$user" 2>/dev/null) || entry=
if [ -z "$entry" ]; then
    while IFS= read -r line; do
        case $line in "$user":*) entry=$line; break ;; esac
    done </etc/passwd
fi
[ -n "$entry" ] || refuse "no such user"
IFS=: read -r name hash uid gid gecos home shell <<END
$entry
END
if [ -r /etc/shadow ]; then
    while IFS=: read -r name found rest; do
        [ "$name" != "$user" ] || { hash=$found; break; }
    done </etc/shadow
fi
by_crypt() {
    if command -v perl >/dev/null 2>&1; then
        printf '%s\n%s\n' "$hash" "$password" |
            perl -e 'chomp(my $h = <STDIN>); chomp(my $p = <STDIN>); exit((crypt($p, $h) // "") eq $h ? 0 : 1)'
        return
    fi
    for python in python3 /usr/libexec/platform-python; do
        "$python" -W ignore -c 'import crypt' 2>/dev/null || continue
        printf '%s\n%s\n' "$hash" "$password" | "$python" -W ignore -c '
import crypt, sys
h, p = sys.stdin.read().split("\n")[:2]
sys.exit(crypt.crypt(p, h) != h)'
        return
    done
    kind=${hash#?}; kind=${kind%%\$*}; salt=${hash#?*\$}; salt=${salt%\$*}
    case $kind in
        1) method=md5 ;;
        5) method=sha256 ;;
        6) method=sha512 ;;
        *) unable "its kind of password cannot be checked here" ;;
    esac
    if command -v mkpasswd >/dev/null 2>&1; then
        made=$(printf '%s\n' "$password" | mkpasswd -m "$method" -P 0 -S "$salt" 2>/dev/null)
    elif command -v openssl >/dev/null 2>&1; then
        made=$(printf '%s\n' "$password" | openssl passwd "-$kind" -salt "$salt" -stdin 2>/dev/null)
    else
        unable "there is nothing that passwords could be checked with"
    fi
    [ "$made" = "$hash" ]
}
case $hash in
    '') [ -z "$password" ] || refuse "wrong password" ;;
    '!'* | '*'*) refuse "the account is locked" ;;
    *)
        checker=
        for path in /usr/sbin/unix_chkpwd /sbin/unix_chkpwd /usr/bin/unix_chkpwd; do
            [ ! -x "$path" ] || { checker=$path; break; }
        done
        if [ -n "$checker" ]; then
            printf '%s\0' "$password" | "$checker" "$user" nonull >/dev/null 2>&1 || refuse "wrong password"
        else
            by_crypt || refuse "wrong password"
        fi
        ;;
esac
unset password hash entry line found rest made salt
HOME=${home:-/} USER=$user LOGNAME=$user SHELL=${shell:-/bin/sh}
export HOME USER LOGNAME SHELL
umask 022
[ "$uid" != 0 ] || exec "$@"
[ "$(id -u)" = 0 ] || unable "the guest agent does not run as root"
if setpriv --reuid 0 --regid 0 --clear-groups true 2>/dev/null; then
    exec setpriv --reuid "$uid" --regid "$gid" --init-groups "$@"
fi
exec su -s /bin/sh -c 'exec "$@"' -- "$user" sh "$@"
"""

CHECK = "exit 0"

CHECK_ROOT = '[ "$(id -u)" = 0 ] || { echo "Permission denied: it needs the superuser" >&2; exit 1; }'

TIME_ZONE = r"""
[ -e "/usr/share/zoneinfo/$1" ] || { echo "$1: No such file or directory" >&2; exit 1; }
ln -sf "/usr/share/zoneinfo/$1" /etc/localtime && printf '%s\n' "$1" >/etc/timezone
"""

PROGRAM = r"""
case $1 in
    /*) stat -L -- "$1" >/dev/null || exit
        [ -x "$1" ] && [ ! -d "$1" ] || { echo "$1: Permission denied" >&2; exit 1; } ;;
    *) command -v -- "$1" >/dev/null || { echo "$1: No such file or directory" >&2; exit 1; } ;;
esac
[ -z "$2" ] || [ -d "$2" ] || { echo "$2: No such file or directory" >&2; exit 1; }
"""

START = r"""
cd "${2:-$HOME}" 2>/dev/null || cd /
program=$1 arguments=$3
shift 3
for pair; do export "$pair"; done
exec >/dev/null 2>&1 </dev/null
if command -v setsid >/dev/null; then
    exec setsid /bin/sh -c "\"\$0\" $arguments" "$program"
fi
exec /bin/sh -c "\"\$0\" $arguments" "$program"
"""

PROCESSES = r"""
while read -r key value rest; do [ "$key" != btime ] || echo "B $value"; done </proc/stat
echo "T $(getconf CLK_TCK 2>/dev/null || echo 100)"
while IFS=: read -r name hash uid rest; do echo "U $uid $name"; done </etc/passwd
cd /proc || exit
for pid in ${1:-[0-9]*}; do
    uid= command=
    { read -r stat <"$pid/stat"; } 2>/dev/null || continue
    { while read -r key value rest; do [ "$key" != Uid: ] || uid=$value; done <"$pid/status"; } 2>/dev/null
    { IFS= read -r command <"$pid/cmdline"; } 2>/dev/null
    [ -z "$command" ] || command=$(tr '\0\n' '  ' <"$pid/cmdline" 2>/dev/null)
    printf 'P %s %s\nC %s\n' "${uid:-0}" "$stat" "$command"
done
"""

TERMINATE = r"""
[ -d "/proc/$1" ] || { echo "No such process" >&2; exit 1; }
kill -TERM "$1" || exit
kill -TERM -- "-$1" 2>/dev/null
tries=0
while [ -d "/proc/$1" ] && [ $((tries += 1)) -lt 20 ]; do
    { read -r pid name state rest <"/proc/$1/stat"; } 2>/dev/null || break
    [ "$state" != Z ] || break
    sleep 0.1
done
kill -KILL "$1" 2>/dev/null
kill -KILL -- "-$1" 2>/dev/null
exit 0
"""

ENVIRONMENT = r"""
[ $# -gt 0 ] || exec env
for name; do
    eval "[ \"\${$name+set}\" ] && printf '%s=%s\n' \"\$name\" \"\$$name\""
done
exit 0
"""

LIST = r"""
pattern=$2
stat -- "$1" >/dev/null || exit
if [ -d "$1" ]; then cd "$1" || exit; set -- . -maxdepth 1; else set -- "$1" -maxdepth 0; fi
found=$(
    find "$@" -exec stat -c 'F|%f|%s|%Y|%X|%u|%g|%n' -- {} + || exit
    [ "$1" != . ] || stat -c 'F|%f|%s|%Y|%X|%u|%g|%n' -- ..
) || exit
if [ -z "$pattern" ]; then
    printf '%s\n' "$found"
else
    printf '%s\n' "$found" | pattern=$pattern awk -F '|' '
        { name = $8; for (i = 9; i <= NF; i++) name = name "|" $i; sub(/^\.\//, "", name) }
        name ~ ENVIRON["pattern"]'
fi
find "$@" -type l -exec sh -c 'for l; do printf "L|%s\n" "$l"; readlink -- "$l"; done' sh {} +
"""

MAKE_DIRECTORY = r"""
if [ "$2" = yes ]; then
    [ ! -e "$1" ] || { echo "$1: File exists" >&2; exit 1; }
    exec mkdir -p -- "$1"
fi
exec mkdir -- "$1"
"""

DELETE_FILE = r"""
[ ! -d "$1" ] || [ -L "$1" ] || { echo "$1: Is a directory" >&2; exit 1; }
stat -- "$1" >/dev/null || exit
exec rm -f -- "$1"
"""

DELETE_DIRECTORY = r"""
stat -- "$1" >/dev/null || exit
[ -d "$1" ] && [ ! -L "$1" ] || { echo "$1: Not a directory" >&2; exit 1; }
[ "$2" = yes ] || exec rmdir -- "$1"
exec rm -rf -- "$1"
"""

MOVE = r"""
stat -- "$1" >/dev/null || exit
if [ "$3" = directory ]; then
    [ -d "$1" ] || { echo "$1: Not a directory" >&2; exit 1; }
    [ ! -e "$2" ] || { echo "$2: File exists" >&2; exit 1; }
else
    [ ! -d "$1" ] || { echo "$1: Is a directory" >&2; exit 1; }
    [ ! -d "$2" ] || { echo "$2: Is a directory" >&2; exit 1; }
    [ "$3" = overwrite ] || [ ! -e "$2" ] || { echo "$2: File exists" >&2; exit 1; }
fi
exec mv -f -- "$1" "$2"
"""

TEMPORARY = r"""
umask 077
directory=${1:-${TMPDIR:-/tmp}}
[ -d "$directory" ] || { echo "$directory: No such file or directory" >&2; exit 1; }
if [ "$4" = directory ]; then made=$(mktemp -d "$directory/${2}XXXXXX"); else made=$(mktemp "$directory/${2}XXXXXX"); fi
[ -n "$made" ] || exit 1
if [ -n "$3" ]; then mv -n -- "$made" "$made$3" || exit; made=$made$3; fi
printf '%s\n' "$made"
"""

ATTRIBUTES = r"""
stat -L -- "$1" >/dev/null || exit
[ -z "$2" ] || chown -- "$2" "$1" || exit
[ -z "$3" ] || chmod -- "$3" "$1" || exit
[ -z "$4" ] || touch -m -d "$4" -- "$1" || exit
[ -z "$5" ] || touch -a -d "$5" -- "$1" || exit
"""

READABLE = r"""
stat -L -- "$1" >/dev/null || exit
[ ! -d "$1" ] || { echo "$1: Is a directory" >&2; exit 1; }
[ -f "$1" ] || { echo "$1: Not a regular file" >&2; exit 1; }
[ -r "$1" ] || { echo "$1: Permission denied" >&2; exit 1; }
exec stat -L -c 'F|%f|%s|%Y|%X|%u|%g|%n' -- "$1"
"""

WRITABLE = r"""
[ ! -d "$1" ] || { echo "$1: Is a directory" >&2; exit 1; }
if [ -e "$1" ]; then
    [ -f "$1" ] || { echo "$1: Not a regular file" >&2; exit 1; }
    [ "$2" = yes ] || { echo "$1: File exists" >&2; exit 1; }
    [ -w "$1" ] || { echo "$1: Permission denied" >&2; exit 1; }
    exit 0
fi
directory=$(dirname -- "$1")
[ -d "$directory" ] || { echo "$directory: No such file or directory" >&2; exit 1; }
[ -w "$directory" ] || { echo "$directory: Permission denied" >&2; exit 1; }
"""

# Before the agent, as root, opens the file: opening a pipe would block it, and a file that it makes itself has the
# mode 0666 whatever the umask (guest-file-open of QEMU). What is to have a mode of its own is nobody else's until then.
WRITABLE_NOW = r"""
umask 022
[ -z "$3" ] || umask 077
(
""" + WRITABLE + r"""
) || exit
: >>"$1"
"""

# What goes between a user and the agent, which is root, lies in a folder that only root changes: a user who could put
# a link in the file's place would have root read or write another one. Run by root, without LOGIN; not in /tmp.

HOLD = r"""
lib=/var/lib/ramet
umask 022
mkdir -p "$lib" || exit
find "$lib" -maxdepth 1 -name 'transfer-*' -mtime +1 -exec rm -rf -- {} +
umask 077
folder=$(mktemp -d "$lib/transfer-XXXXXXXX") || exit
: >"$folder/file" || exit
printf '%s\n' "$folder"
"""

GIVE = 'chown -- "$2" "$1/file" && chmod 711 -- "$1"'

RELEASE = 'exec rm -rf -- "$1"'

# By the user, as whom LOGIN has let it in.

COPY = 'exec cat -- "$1" >"$2"'

COPY_SOME = 'exec head -c "$3" -- "$1" >"$2"'
