#!/bin/busybox sh
# What udhcpc says of a lease is put into force. Arguments and variables: busybox's examples/udhcp/simple.script.
case $1 in
  bound | renew)
    /bin/busybox ip addr replace "$ip/${mask:-24}" dev "$interface"
    [ -z "$router" ] || /bin/busybox ip route replace default via "${router%% *}" dev "$interface"
    for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
    ;;
esac
