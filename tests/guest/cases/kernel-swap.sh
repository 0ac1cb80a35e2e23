# guest: --memory 768 --disk 512M --timeout 400
# The harness itself: the kernel's own swap, on a disk and on zram. If this fails, it is not swapfs.
. "${0%/*}/lib/guest.sh"

make_cgroup small 60

step "a plain disk"
mkswap -q /dev/vda 2>/dev/null || mkswap /dev/vda
swapon --discard=pages /dev/vda
load "disk, random" in_cgroup small pageload --megabytes 200 --passes 1 --seed "$seed" --processes 2
check_swapped_out 140
swapoff /dev/vda

step "zram, sequential, with MADV_PAGEOUT"
echo 300M >/sys/block/zram0/disksize
mkswap /dev/zram0 >/dev/null
swapon /dev/zram0
load "zram, mixed" pageload --megabytes 100 --passes 1 --seed "$seed" --touch mixed --pageout
check_swapped_out 100
swapoff /dev/zram0
echo 1 >/sys/block/zram0/reset
check_nothing_left "at the end"
