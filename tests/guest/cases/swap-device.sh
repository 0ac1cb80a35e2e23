# guest: --memory 1024 --disk 512M --disk 512M --timeout 900
# A volume on a whole block device, with both engines.
. "${0%/*}/lib/guest.sh"

make_cgroup small 20
for engine in sync uring; do
    case "$engine" in
    sync) device=/dev/vda ;;
    uring) device=/dev/vdb ;;
    esac
    step "engine=$engine on $device"
    mkswapfs -o "engine=$engine" "$device"
    check "the device itself is no swap area" refused swapon "$device"
    swapfs up "$device" --priority 10 --discard=pages
    load "engine=$engine on $device, random" in_cgroup small \
        pageload --megabytes 60 --passes 1 --seed "$seed" --processes 2
    check_swapped_out 40
    check "a device in use is not formatted again" refused mkswapfs -f "$device"
    swapfs down "$device"
    check_nothing_left "after $device"
    check "fsck.swapfs finds nothing wrong" fsck-swapfs -n "$device"
done
