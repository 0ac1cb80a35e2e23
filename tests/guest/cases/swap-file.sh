# guest: --memory 1024 --disk 2G --timeout 900
# A volume in a file on ext4, with both engines: a workload of three times its cgroup's memory,
# random access, every byte verified, freed clusters discarded.
. "${0%/*}/lib/guest.sh"

# SWAPFS_LONG=1: three times of all.
megabytes=75
[ "${SWAPFS_LONG:-}" != 1 ] || megabytes=300

make_ext4 /dev/vda /mnt/data
make_cgroup small $((megabytes / 3))

for engine in sync uring; do
    image="/mnt/data/$engine.img"
    step "engine=$engine: up"
    swapfs up "$image" --type linear --size 512M --priority 10 --discard=pages -o "engine=$engine"
    swapfs status
    check "the kernel swaps to a loop device" grep -q '^/dev/loop' /proc/swaps
    load "engine=$engine, random" in_cgroup small \
        pageload --megabytes "$megabytes" --passes 1 --seed "$seed" --processes 2
    check_swapped_out $((megabytes * 2 / 3))
    load "engine=$engine, runs of neighbours, pushed out" in_cgroup small \
        pageload --megabytes 24 --passes 1 --seed "$seed" --touch mixed --compressible 0 --pageout
    check_swapped_out 24
    swapfs status --json >"$scratch/status"
    check "discards reached the back end" \
        grep -Eq '"discards?(_requests|_total)?": *[1-9]|"discard[a-z_]*": *\{[^}]*[1-9]' "$scratch/status"
    step "engine=$engine: down"
    swapfs down "$image"
    check_nothing_left "after engine=$engine"
    check "fsck.swapfs finds nothing wrong" fsck-swapfs -n "$image"
    rm "$image"
done
