#!/bin/sh
# What udhcpc calls with what it was given: sets the address and says everything.
case "$1" in
deconfig) ip addr flush dev "$interface" ;;
bound | renew)
    ip addr replace "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "$router"
    echo "ip=$ip"
    echo "mask=$mask"
    echo "router=$router"
    echo "dns=$dns"
    echo "domain=$domain"
    ;;
esac
