# guest: --memory 1024 --disk 1G --disk 512M --timeout 900
# Two volumes at once: the preferred one fills first; with equal priority both are used.
#
# SWAPFS_LONG=1: more memory.
. "${0%/*}/lib/guest.sh"

preferred_mb=24
different_mb=80
equal_mb=50
if [ "${SWAPFS_LONG:-}" = 1 ]; then
    preferred_mb=64
    different_mb=200
    equal_mb=120
fi

make_ext4 /dev/vda /mnt/data
first=/mnt/data/first.img
second=/dev/vdb
make_cgroup one $((equal_mb / 2))
make_cgroup two $((equal_mb / 2))
mkswapfs -o engine=sync "$second"

show_use() {
    first_kib="$(swap_used_kib "$(swap_device_of "$first")")"
    second_kib="$(swap_used_kib "$(swap_device_of "$second")")"
    echo "in use: $first $first_kib KiB, $second $second_kib KiB"
}

step "different priorities: $preferred_mb MiB preferred, a workload of $different_mb MiB"
swapfs up "$first" --type linear --size "${preferred_mb}M" --priority 20 --discard=pages
swapfs up "$second" --priority 5 --discard=pages
cat /proc/swaps
in_cgroup one pageload --megabytes "$different_mb" --passes 1 --seed "$seed" --processes 2 \
    --ready "$scratch/ready" --until "$scratch/stop" >"$scratch/background" 2>&1 &
workload=$!
wait_for "workload ready" test -e "$scratch/ready"
show_use
check "the preferred volume is nearly full" [ "$first_kib" -gt $((preferred_mb * 8 / 10 * 1024)) ]
check "the rest went to the other" [ "$second_kib" -gt $((20 * 1024)) ]
touch "$scratch/stop"
status=0
wait "$workload" || status=$?
cat "$scratch/background"
count_load "different priorities" "$status" "$scratch/background"
swapfs down --all
check_nothing_left "after different priorities"
rm "$first" "$scratch/ready" "$scratch/stop"

step "equal priorities: two workloads at once"
swapfs up "$first" --type linear --size 400M --priority 7 --discard=pages
swapfs up "$second" --priority 7 --discard=pages
cat /proc/swaps
for group in one two; do
    in_cgroup "$group" pageload --megabytes "$equal_mb" --passes 1 --seed "$seed" \
        --ready "$scratch/ready.$group" --until "$scratch/stop" >"$scratch/$group" 2>&1 &
    echo $! >"$scratch/$group.pid"
done
for group in one two; do
    wait_for "workload $group ready" test -e "$scratch/ready.$group"
done
show_use
check "the first volume is in use" [ "$first_kib" -gt 10240 ]
check "the second volume is in use" [ "$second_kib" -gt 10240 ]
touch "$scratch/stop"
for group in one two; do
    status=0
    wait "$(cat "$scratch/$group.pid")" || status=$?
    cat "$scratch/$group"
    count_load "equal priorities, workload $group" "$status" "$scratch/$group"
done
swapfs status
swapfs down --all
check_nothing_left "at the end"
