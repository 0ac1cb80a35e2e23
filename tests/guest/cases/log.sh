# guest: --memory 768 --disk 1G --timeout 1200
# A log under real swap: its process is killed again and again, and exchanged by `swapfs upgrade` in
# between, while it flushes and collects garbage: no page is lost, and no program notices.
#
# SWAPFS_LONG=1: the long version; SWAPFS_KILLS, SWAPFS_UPGRADES: how many.
. "${0%/*}/lib/guest.sh"
. "${0%/*}/lib/kill.sh"

make_ext4 /dev/vda /mnt/data
make_cgroup small 45

# Little more room than what is swapped out takes, and many small segments: they are collected and
# written again. And so small a volume that the kernel frees slots when it reads them: it is more
# than half full.
truncate -s 160M /mnt/data/log.img
mkswapfs -t log -s 224M -o segment=256K,buffer=8M,deadline-ms=500,gc-low=40,gc-high=45 \
    /mnt/data/log.img

is_collected() { # MOUNT
    read_number "$1" segments_freed
    [ "${number:-0}" -gt 0 ] && read_number "$1" gc_moved_bytes && [ "${number:-0}" -gt 0 ]
}

under_load() { # MOUNT
    wait_for "log: segments are collected" is_collected "$1"
    check "log: $number bytes of pages moved to other segments" is_collected "$1"
    read_number "$1" device_errors
    check "log: $number device errors" [ "$number" = 0 ]
}

kill_under_load log
