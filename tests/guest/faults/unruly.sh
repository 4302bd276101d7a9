#!/bin/sh
# In a micro guest: misbehave on the port of the guest agent, or of guest RPC.
#
#   unruly.sh nonsense          an agent that comes into step, and then answers nonsense
#   unruly.sh babble            an agent that never ends
#   unruly.sh bytes|lines|requests   guest RPC without an end; when /run/freeze is there, one request to be frozen
#   unruly.sh well              all is as it was

open_port() {
    for name in /sys/class/virtio-ports/*/name; do
        read -r found <"$name"
        name=${name%/name}
        if [ "$found" = "$1" ]; then exec 3<>"/dev/${name##*/}"; fi
    done
}

begin_flood() {
    echo $$ >/run/unruly.pid
    open_port org.ramet.rpc.0
    cat <&3 >/dev/null &
}

freeze_if_asked() {
    [ -e /run/freeze ] || return 0
    rm /run/freeze
    # Again and again: who floods is refused much. One of them is carried out, the others are the same request.
    awk -v id="f$$" 'BEGIN { print ""; for (i = 0; i < 1500; i++) print id " p instantclone.freeze" }' >&3
}

case $1 in
    nonsense)
        open_port org.qemu.guest_agent.0
        number=0
        while IFS= read -r line <&3; do
            case $line in
                *guest-sync-delimited*)
                    id=${line##*\"id\": }
                    printf '\377{"return": %s}\n' "${id%%\}*}"
                    continue
                    ;;
            esac >&3
            case $((number = (number + 1) % 4)) in
                0) echo 'what?' ;;
                1) echo '{"return": {"pid": "many", "exited": "soon", "count": -1}}' ;;
                2) echo '{"return": [[[[]]]], "error": 7}' ;;
                3) echo '{"error": {"class": 5, "desc": {}}}' ;;
            esac >&3
        done
        ;;
    babble)
        open_port org.qemu.guest_agent.0
        exec cat /dev/zero >&3
        ;;
    bytes)
        begin_flood
        while :; do
            head -c 1000000 /dev/zero >&3
            freeze_if_asked
        done
        ;;
    lines)
        begin_flood
        while :; do
            yes x | head -n 2000 >&3
            freeze_if_asked
        done
        ;;
    requests)
        begin_flood
        turn=0
        while :; do
            awk -v n="$((turn += 1))" 'BEGIN {
                for (i = 0; i < 200; i++) {
                    print n "-" i "a p info-get guestinfo.flood"
                    print n "-" i "b p log flood " i
                    print n "-" i "c p info-set guestinfo.flood " i
                    print n "-" i "d p what"
                }
            }' >&3
            freeze_if_asked
        done
        ;;
    well)
        cp /run/agent.own /etc/micro/agent
        [ ! -e /run/unruly.pid ] || kill -9 "-$(cat /run/unruly.pid)"
        rm -f /run/unruly.pid /run/freeze
        killall -CONT qemu-ga
        [ ! -e /run/unruly-agent.pid ] || kill -9 "$(cat /run/unruly-agent.pid)"
        rm -f /run/unruly-agent.pid
        ;;
esac
