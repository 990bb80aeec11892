#!/bin/busybox sh
# Process 1 of the recovery medium: takes or asks for what to stream and where to, starts the agent, attaches the disk that it serves, and goes on
# into the system on that disk, while the agent fills it. What the kernel's command line may say is in docs/recovery.md.
#
# The agent lives in a root directory of its own, a tmpfs that no later mount hides and nothing removes: switch_root empties the initrd.

/bin/busybox mkdir -p /bin /sbin /dev /proc /sys /run /root /tmp
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin
AGENT=/agent
DEVICE=/dev/nbd0
# For disks and network cards to appear; those of a slow machine take long.
WAIT_SECONDS_MAX=60
# A system whose root filesystem gives errors is lost; one that waits for the network goes on.
MISS_MS_MAX=3600000

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=0755 run /run
# What the kernel needs unasked: checksums of filesystems, character sets.
system_modprobe=$(cat /proc/sys/kernel/modprobe)
echo /bin/modprobe >/proc/sys/kernel/modprobe

# On every console that the kernel writes to.
say() {
  for console in $(cat /sys/class/tty/console/active); do echo "varve: $*" >"/dev/$console"; done
}

# The user may look around; then it begins anew.
fail() {
  say "$*"
  say 'a shell is on the console; "exit" restarts the machine'
  setsid -c sh -c 'exec sh </dev/console >/dev/console 2>&1'
  reboot -f
}

# value NAME: what the kernel's command line says as varve.NAME=; the last one counts.
value() {
  tr ' ' '\n' </proc/cmdline | sed -n "s/^varve\.$1=//p" | tail -n 1
}

# ask NAME QUESTION: what the command line says, otherwise what is typed.
ask() {
  answer=$(value "$1")
  while [ -z "$answer" ]; do
    printf '%s: ' "$2" >/dev/console
    read -r answer </dev/console || sleep 1
  done
  echo "$answer"
}

# Of each device that is there, also of those that appear as a driver is loaded.
load_drivers() {
  find /sys/devices -name modalias -exec cat {} + | sort -u | xargs -r modprobe -a -b -q 2>/dev/null
}

# until_true COMMAND...: loads drivers until it succeeds.
until_true() {
  seconds=0
  until "$@"; do
    [ "$seconds" -lt "$WAIT_SECONDS_MAX" ] || return 1
    load_drivers
    sleep 1
    seconds=$((seconds + 1))
  done
}

# --- the agent's root directory

# One after another, so that little is in memory twice.
build_agent_root() {
  mkdir "$AGENT"
  mount -t tmpfs -o mode=0755,size=90% agent "$AGENT"
  for entry in /agent.initrd/*; do
    cp -a "$entry" "$AGENT/"
    rm -rf "$entry"
  done
  mkdir -p "$AGENT/dev" "$AGENT/proc" "$AGENT/sys" "$AGENT/run" "$AGENT/tmp"
  mount -t devtmpfs dev "$AGENT/dev"
  mount -t proc proc "$AGENT/proc"
  mount -t sysfs sys "$AGENT/sys"
  mount -t tmpfs -o mode=0700 agent-run "$AGENT/run"
  # Is seen from the system, too: its control socket, its log.
  mkdir -m 0700 "$AGENT/run/varve-agent"
}

in_agent_root() {
  chroot "$AGENT" /usr/bin/varve "$@"
}

# --- the network

# ADDRESS/PREFIX[,GATEWAY[,NAMESERVER]] on the first card that has a line, or DHCP on all, the first answer counts.
start_network() {
  ip link set lo up
  until_true has_network_card || fail 'no network card was found'
  for card in $(network_cards); do ip link set "$card" up; done
  # Under this name the server knows the agent.
  hostname "recovery-$(cat /sys/class/net/[!l]*/address | head -n 1 | tr -d :)"
  case $(value ip) in
    '' | dhcp) until_true dhcp || fail 'no answer by DHCP on any network card' ;;
    *) until_true static_address || fail 'no network card has a line' ;;
  esac
  # The names of the agent's server.
  cp /etc/resolv.conf "$AGENT/etc/resolv.conf" 2>/dev/null
}

network_cards() {
  for card in /sys/class/net/*; do
    [ -e "$card/device" ] && echo "${card##*/}"
  done
}

has_network_card() {
  [ -n "$(network_cards)" ]
}

dhcp() {
  for card in $(network_cards); do
    ip link set "$card" up
    [ "$(cat "/sys/class/net/$card/carrier" 2>/dev/null)" = 1 ] || continue
    # It goes on in the background and renews the lease, in the streamed system too.
    if chroot "$AGENT" /bin/busybox udhcpc -i "$card" -n -t 4 -T 2 -s /etc/udhcpc.sh >/dev/null 2>&1; then
      cp "$AGENT/etc/resolv.conf" /etc/resolv.conf 2>/dev/null
      return 0
    fi
  done
  return 1
}

static_address() {
  for card in $(network_cards); do
    [ "$(cat "/sys/class/net/$card/carrier" 2>/dev/null)" = 1 ] || continue
    IFS=, read -r address gateway nameserver <<END
$(value ip)
END
    ip addr add "$address" dev "$card" || return 1
    [ -z "$gateway" ] || ip route add default via "$gateway"
    [ -z "$nameserver" ] || echo "nameserver $nameserver" >/etc/resolv.conf
    return 0
  done
  return 1
}

# --- the target

disks() {
  for disk in /sys/block/*; do
    name=${disk##*/}
    case $name in loop* | ram* | nbd* | sr* | fd* | zram* | dm-*) continue ;; esac
    [ "$(cat "$disk/size")" -gt 0 ] && [ "$(cat "$disk/ro")" = 0 ] && echo "$name"
  done
}

has_disk() {
  [ -n "$(disks)" ]
}

show_disks() {
  for name in $(disks); do
    say "  /dev/$name  $(($(cat "/sys/block/$name/size") / 2097152)) GiB  $(cat "/sys/block/$name/device/model" 2>/dev/null)"
  done
}

choose_target() {
  target=$(value target)
  if [ -z "$target" ]; then
    until_true has_disk || fail 'no disk was found'
    say 'disks of this machine:'
    show_disks
    target=$(ask target 'Disk to stream to, such as /dev/sda')
  fi
  until_true test -b "$target" || fail "$target is not there"
}

# --- the stream

# Without the token at first: a disk that was begun knows its key, and a token is good once.
start_agent() {
  set -- agent stream "$cvd" --to "$target" --nbd unix:/run/nbd.sock --from "$server" --identity /run/identity.json --miss-ms "$MISS_MS_MAX" --log-level info --json
  [ ! -e "$AGENT/etc/authorities.pem" ] || set -- "$@" --ca /etc/authorities.pem
  [ "$(value overwrite)" != 1 ] || set -- "$@" --overwrite
  say "starting the agent: varve $*"
  run_agent "$@" || { [ -n "$token" ] && agent_says TOKEN_INVALID && run_agent "$@" --token "$token"; } || agent_failed
}

# Returns when the agent serves the disk, or has ended.
run_agent() {
  in_agent_root "$@" >"$AGENT/run/agent.json" 2>"$AGENT/run/varve-agent/agent.log" &
  agent=$!
  # Its document is whole when its last line is there.
  until grep -q '^}' "$AGENT/run/agent.json" || ! kill -0 "$agent" 2>/dev/null; do sleep 0.2; done
  grep -q '^  "nbd"' "$AGENT/run/agent.json" && return
  wait "$agent"
  return 1
}

agent_says() {
  grep -q "\"code\": \"$1\"" "$AGENT/run/agent.json"
}

agent_failed() {
  cat "$AGENT/run/agent.json" "$AGENT/run/varve-agent/agent.log" | while read -r line; do say "$line"; done
  if agent_says ALREADY_EXISTS || { agent_says TARGET_INVALID && grep -q 'is not blank' "$AGENT/run/agent.json"; }; then boot_target; fail "no system was found on $target"; fi
  fail 'the agent did not start'
}

# The target holds a system already: one that was streamed to the end, or another. Nothing is overwritten unasked.
boot_target() {
  say "$target holds something already; to overwrite it, boot with varve.overwrite=1"
  blockdev --rereadpt "$target" 2>/dev/null
  mount_root "$target" || return
  say "going on into the system on $target"
  enter_system
}

attach() {
  modprobe nbd max_part=16 || fail 'the kernel has no NBD client'
  nbd-client -unix "$AGENT/run/nbd.sock" "$DEVICE" -N "$cvd" -b 512 >/run/nbd-client.log 2>&1 || fail "nbd-client: $(tail -n 1 /run/nbd-client.log)"
  blockdev --rereadpt "$DEVICE"
}

# mount_root DISK: the last partition that holds a system is where it is in a composed disk.
mount_root() {
  for driver in ext4 xfs btrfs; do modprobe -q "$driver"; done
  for partition in $(ls -r "/sys/block/${1##*/}" | grep "^${1##*/}p\?[0-9]") ${1##*/}; do
    mount -o ro "/dev/$partition" /root 2>/dev/null || continue
    if [ -L /root/sbin/init ] || [ -e /root/sbin/init ]; then
      mount -o remount,rw /root
      return 0
    fi
    umount /root
  done
  return 1
}

enter_system() {
  lend_modules
  echo "$system_modprobe" >/proc/sys/kernel/modprobe
  mount --move /dev /root/dev
  mount --move /proc /root/proc
  mount --move /sys /root/sys
  mount -t tmpfs -o mode=0755,nosuid,nodev run /root/run
  mkdir /root/run/varve-agent
  mount --bind "$AGENT/run/varve-agent" /root/run/varve-agent
  exec switch_root -c /dev/console /root /sbin/init
}

# The medium's kernel goes on: where the system has no modules for it, the medium's are put over an empty directory.
lend_modules() {
  modules=lib/modules/$(uname -r)
  [ -e "/root/$modules/modules.dep" ] && return
  mkdir -p "/root/$modules" "$AGENT/$modules"
  cp -a "/$modules/." "$AGENT/$modules/"
  mount --bind "$AGENT/$modules" "/root/$modules"
}

build_agent_root
say "recovery medium of Varve $(in_agent_root --version), Linux $(uname -r)"
load_drivers
start_network
server=$(ask server 'Server, such as https://varve.example:8470')
cvd=$(ask cvd 'CVD')
token=$(value token)
if [ -z "$(value cvd)" ]; then
  printf 'Token (empty if this disk was begun already): ' >/dev/console
  read -r token </dev/console
fi
choose_target
start_agent
attach
mount_root "$DEVICE" || fail "no system was found on the disk of $cvd"
say "going on into the system; it is streamed to $target"
enter_system
