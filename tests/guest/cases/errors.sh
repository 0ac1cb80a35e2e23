# guest: --memory 1024 --disk 1G --timeout 900 --allow Write-error.on.swap-device
# Swap-outs that fail: the kernel keeps the pages, and no page is wrong.
. "${0%/*}/lib/guest.sh"

make_ext4 /dev/vda /mnt/data
image=/mnt/data/swap.img
make_cgroup small 20
for fault in write:EIO:1/50 write:ENOSPC:1/50; do
    step "fault=$fault"
    swapfs up "$image" --type linear --size 512M --priority 10 --discard=pages -o "fault=$fault,fault-seed=$seed"
    load "fault=$fault" in_cgroup small \
        pageload --megabytes 60 --passes 1 --seed "$seed" --processes 2
    check_swapped_out 40
    errors="$(dmesg | grep -c 'Write-error on swap-device' || true)"
    check "swap-outs failed on purpose (messages of the kernel: $errors)" [ "$errors" -gt 0 ]
    dmesg --clear
    swapfs status
    swapfs down "$image"
    check_nothing_left "after fault=$fault"
    rm "$image"
done
