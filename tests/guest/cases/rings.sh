# guest: --kernel newer --memory 768 --disk 1G --timeout 600
# FUSE over io_uring (transport=uring) under real swap: every byte verified, while the process that
# serves is exchanged by `swapfs upgrade` again and again. Debian's 6.12 has no such transport.
#
# SWAPFS_UPGRADES: how many, for each type.
. "${0%/*}/lib/guest.sh"

upgrades="${SWAPFS_UPGRADES:-5}"
switch=/sys/module/fuse/parameters/enable_uring

make_ext4 /dev/vda /mnt/data
make_cgroup small 60

step "the switch"
check "the kernel has FUSE over io_uring" [ -e "$switch" ]
echo N >"$switch"
check "without the switch it is refused" \
    refused swapfs up /mnt/data/none.img --type zmem --size 64M --transport uring
swapfs up /mnt/data/none.img --type zmem --size 64M --transport uring 2>"$scratch/why" || true
check "and it is said how to turn it on" grep -q "echo Y > $switch" "$scratch/why"
check "and the kernel is as it was" [ "$(cat "$switch")" = N ]

under_load() { # TYPE UP_ARGUMENT...
    local type="$1" image="/mnt/data/$1.img" mount workload status=0 upgraded=0
    shift
    step "$type: up"
    swapfs up "$image" --type "$type" --size 512M --priority 10 --discard=pages \
        --transport uring --enable-uring "$@"
    check "$type: the switch is on" [ "$(cat "$switch")" = Y ]
    mount="$(mount_of "$image")"
    check "$type: requests come by rings" grep -q '"transport":"uring"' "$mount/stats.json"
    rm -f "$scratch/ready" "$scratch/stop"
    in_cgroup small pageload --megabytes 160 --passes 0 --seed "$seed" --processes 2 --touch mixed \
        --ready "$scratch/ready" --until "$scratch/stop" >"$scratch/background" 2>&1 &
    workload=$!
    wait_for "$type: workload ready" test -e "$scratch/ready"
    while [ "$upgraded" -lt "$upgrades" ] && kill -0 "$workload" 2>/dev/null; do
        pause 1
        swapfs upgrade "$image" || break
        upgraded=$((upgraded + 1))
    done
    check "$type: $upgraded upgrades of $upgrades" [ "$upgraded" = "$upgrades" ]
    check "$type: the workload still runs" kill -0 "$workload"
    touch "$scratch/stop"
    wait "$workload" || status=$?
    cat "$scratch/background"
    count_load "$type: $upgraded upgrades" "$status" "$scratch/background"
    check_swapped_out 100
    swapfs status
    check "$type: no request failed" \
        grep -q '"errors":{"read":0,"write":0,"discard":0,"flush":0,"checksum":0}' "$mount/stats.json"
    check "$type: no heap allocation on the I/O path" \
        grep -q '"heap_allocations_on_io_path":0' "$mount/stats.json"
    check_daemon_not_swapped
    swapfs down "$image"
    check_nothing_left "after $type"
    check "$type: fsck.swapfs finds nothing wrong" fsck-swapfs -n "$image"
    rm "$image"
}

under_load zmem -o limit=256M
under_load linear
