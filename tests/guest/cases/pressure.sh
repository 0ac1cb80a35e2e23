# guest: --memory 320 --disk 2G --timeout 900
# More memory in use than the machine has, without any cgroup limit: the daemon, like everything
# else, has to live with it. (kill-pressure does the same with engine=uring, and kills.)
#
# SWAPFS_LONG=1: with both engines.
. "${0%/*}/lib/guest.sh"

make_ext4 /dev/vda /mnt/data
image=/mnt/data/swap.img
engines=(sync)
[ "${SWAPFS_LONG:-}" != 1 ] || engines=(uring sync)
for engine in "${engines[@]}"; do
    swapfs up "$image" --type linear --size 1G --priority 10 --discard=pages -o "engine=$engine"
    mount="$(mount_of "$image")"
    wait_for "standby" has_standby "$mount"
    daemon="$(daemon_ids "$mount")"
    # A pass of random touches takes long in an emulated guest: the second engine only fills
    # and verifies.
    passes=1
    [ "$engine" = uring ] || passes=0
    step "engine=$engine: 440 MiB in a machine of 320"
    load "engine=$engine, random, 3 processes" \
        pageload --megabytes 440 --passes "$passes" --seed "$seed" --processes 3 --touch mixed
    check_swapped_out 180
    check "the daemon is the same" [ "$(daemon_ids "$mount")" = "$daemon" ]
    check_daemon_not_swapped
    swapfs down "$image"
    check_nothing_left "after engine=$engine"
done
