#!/bin/sh
# Make a host out of new namespaces (mount, network, UTS, PID), then stay as its init.
#
#   host.sh LOWER FOLDER
#
# LOWER is the root file system that all engines of a suite share and none may change; FOLDER
# holds what this host keeps over a reboot. Standard output gets one line when the host is ready:
# the pid of its init, as the machine sees it. It lives for as long as standard input is open.
set -eu
lower=$1 folder=$2 root=$2/root

# /proc is still the machine's, so it tells our pid as seen from there.
read -r pid _ </proc/self/stat

mkdir -p "$folder/upper" "$folder/work" "$folder/lib/docker" "$root"
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"

# overlay2 cannot have an overlay as its upper layer; and the driver's state is read from outside, of
# which SQLite would see nothing through /proc/PID/root.
mount --bind "$folder/lib" "$root/var/lib"

# Inside and outside the chroot /run is one, and what is mounted there shows up in both, so that
# a driver outside sees the engine's sockets and network namespaces under their real names.
mount -t tmpfs -o mode=755 tmpfs /run
mount --make-shared /run
mount --bind /run "$root/run"

mount --rbind /dev "$root/dev"
mount -t proc proc /proc
mount --rbind /proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount --rbind "$root/sys" /sys

# dockerd gets the root as the root of a mount namespace of its own, and not as a chroot: `docker
# exec` enters a container's mount namespace and so that namespace's root, which below a chroot is
# the machine's. A process keeps the namespace; mounting it instead would fail now and then, for the
# kernel takes the order of two namespaces from numbers that each CPU deals out by itself (6.18).
# Entering the namespace that one is in leaves a chroot, where pivot_root would not work, should we
# be in one. What is mounted in /run still shows up in both.
mkfifo "$folder/ready"
unshare --mount --propagation unchanged sh -eu -c '
    cd "$1"
    mkdir -p mnt/old
    exec nsenter --mount=/proc/self/ns/mnt --wd=. sh -eu -c "
        pivot_root . mnt/old
        umount -l /mnt/old
        rmdir /mnt/old
        echo ready
        exec sleep infinity >/dev/null"' sh "$root" >"$folder/ready" &
ln -sfn "/proc/$!/ns/mnt" "$folder/mnt"
read -r _ <"$folder/ready"
rm "$folder/ready"

hostname engine
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 engine\n' >"$root/etc/hosts"
echo nameserver 192.0.2.2 >"$root/etc/resolv.conf" # the neighbour: no name leaves the namespaces

# A new network namespace copies these from the machine, but only a dockerd that finds 0 does
# what it does on a fresh host: enable forwarding and set the FORWARD policy to DROP.
echo 0 >/proc/sys/net/ipv4/ip_forward
echo 0 >/proc/sys/net/ipv6/conf/all/forwarding

# The neighbour, a second host: a network namespace that only this mount keeps.
: >"$folder/lan"
unshare --net="$folder/lan" ip link set lo up
ip link set lo up
ip link add uplink type veth peer name uplink netns "$folder/lan"
ip address add 192.0.2.1/24 dev uplink
ip address add 2001:db8:2::1/64 dev uplink nodad
ip link set uplink up
nsenter --net="$folder/lan" sh -eu -c '
    ip address add 192.0.2.2/24 dev uplink
    ip address add 2001:db8:2::2/64 dev uplink nodad
    ip link set uplink up'
ip route add default via 192.0.2.2
ip -6 route add default via 2001:db8:2::2

echo "$pid"
# An init that ignores SIGCHLD has its adopted children reaped by the kernel; that is all an init
# has to do here. When the other end of standard input closes, for whatever reason, cat ends, and
# with a PID namespace's init the kernel kills everything in it.
exec env --ignore-signal=CHLD cat >/dev/null
