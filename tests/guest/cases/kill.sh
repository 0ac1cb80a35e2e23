# guest: --memory 768 --disk 1G --timeout 1200
# Under real swap, the process that serves is killed again and again, and exchanged by `swapfs
# upgrade` in between: no page is lost, and no program notices.
#
# SWAPFS_LONG=1: the long version; SWAPFS_KILLS, SWAPFS_UPGRADES: how many, for each type.
. "${0%/*}/lib/guest.sh"
. "${0%/*}/lib/kill.sh"

make_ext4 /dev/vda /mnt/data
make_cgroup small 45

kill_under_load zmem --type zmem --size 512M -o limit=256M
kill_under_load linear --type linear --size 512M
