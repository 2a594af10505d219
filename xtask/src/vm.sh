#!/bin/sh
# The first process of the machine that `cargo xtask vm` boots: what a service manager does before anything else, and how a
# program of tests is run. What is run is written below this.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp RUST_BACKTRACE=0 LC_ALL=C.UTF-8
export SIDEREAL_NOT_RUN=/tmp/not-run TERM=dumb NO_COLOR=1
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sys /sys
mount -t devtmpfs -o nosuid dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 pts /dev/pts
for dir in /dev/shm /tmp /var/tmp; do mount -t tmpfs -o mode=1777,nosuid,nodev tmp $dir; done
mount -t tmpfs -o mode=755,nosuid,nodev run /run
ip link set lo up
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate tree /sys/fs/cgroup
for slice in . system.slice user.slice; do
  mkdir -p /sys/fs/cgroup/$slice
  echo '+cpuset +cpu +io +memory +pids' >/sys/fs/cgroup/$slice/cgroup.subtree_control
done
touch $SIDEREAL_NOT_RUN
chmod 666 $SIDEREAL_NOT_RUN
echo "Linux $(uname -r), $(nproc) processors, $(cat /sys/fs/cgroup/cgroup.controllers)"
failed=0
runs=0
run() {
  runs=$((runs + 1)) place=$1 folder=$2 program=$3 user= group=.
  shift 3
  case $place in
    service) group=system.slice/tests-$runs.service ;;
    user) group=user.slice/session-$runs.scope user='setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps=-all' ;;
  esac
  mkdir -p /sys/fs/cgroup/$group
  echo "── $folder as $place: $*"
  if ! $user test -x "$program"; then
    echo "$folder as $place: that user cannot reach $program" >>$SIDEREAL_NOT_RUN
    return
  fi
  begun=$(date +%s)
  (echo 0 >/sys/fs/cgroup/$group/cgroup.procs && cd "$folder" && exec timeout -k 5 900 $user "$program" "$@") ||
    { failed=$((failed + 1)); echo "── FAILED: $folder as $place"; }
  echo "── $(($(date +%s) - begun)) s"
}
finish() {
  sort -u $SIDEREAL_NOT_RUN | sed 's/^/NOT RUN: /'
  echo "sidereal-vm-ended $failed"
  sleep 1
  echo o >/proc/sysrq-trigger
  sleep 60
}
