#!/bin/sh
# Make a machine out of new namespaces, with systemd as its first process.
#
#   machine.sh LOWER FOLDER
#
# The contract is that of tests/engine/host.sh: LOWER is not changed, FOLDER holds the machine's disk
# over a reboot, standard output gets the pid of its init, as this machine sees it, and everything
# ends with standard input.
set -eu
lower=$1 folder=$2 root=$2/root
group=pynet-$(basename "$folder")

mkdir -p "$folder/upper" "$folder/work" "$root"
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"

# systemd wants a hierarchy of groups that it owns: a branch of each that keeps no resource's
# accounts, seen from a namespace as if it were all. The owner removes them by their name.
grep -E ' cgroup2 | cgroup .*name=systemd' /proc/self/mounts >"$folder/groups"
while read -r _ where _; do
    mkdir "$where/$group"
    echo 0 >"$where/$group/cgroup.procs"
done <"$folder/groups"

mkfifo "$folder/ready"
unshare --pid --ipc --cgroup --fork sh -eu -c '
    root=$1 ready=$2
    # /proc is still the outer one, which says our pid as seen from there.
    read -r pid _ </proc/self/stat
    echo "$pid" >"$ready"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        : >"$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    else
        mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
        mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
        mount -t cgroup -o none,name=systemd,xattr cgroup "$root/sys/fs/cgroup/systemd"
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
    fi
    hostname service
    ip link set lo up
    cd "$root"
    pivot_root . mnt
    umount -l /mnt
    exec env -i container=pynet PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --log-target=journal-or-kmsg --show-status=no
' sh "$root" "$folder/ready" </dev/null >/dev/null &
read -r pid <"$folder/ready"
rm "$folder/ready"
echo "$pid"
exec cat >/dev/null
