# guest: --memory 1024 --disk 1G --timeout 900
# The volume is taken down and up again while a workload's pages are on it.
. "${0%/*}/lib/guest.sh"

make_ext4 /dev/vda /mnt/data
image=/mnt/data/swap.img
make_cgroup load 30
swapfs up "$image" --type linear --size 512M --priority 10 --discard=pages

step "start the workload"
in_cgroup load pageload --megabytes 90 --passes 1 --seed "$seed" --processes 2 --pageout \
    --ready "$scratch/ready" --until "$scratch/stop" >"$scratch/background" 2>&1 &
workload=$!
wait_for "workload ready" test -e "$scratch/ready"

much_is_out() { [ "$(swap_used_kib)" -gt $((30 * 1024)) ]; }
for round in 1 2; do
    wait_for "round $round: pages on the volume" much_is_out
    unlimit_cgroup load
    step "round $round: down with $(swap_used_kib) KiB on the volume"
    check "round $round: down under load" swapfs down "$image"
    check_nothing_left "in round $round"
    check "round $round: the workload goes on" kill -0 "$workload"
    step "round $round: up"
    check "round $round: up under load" swapfs up "$image" --priority 10 --discard=pages
    limit_cgroup load 30
done
wait_for "pages on the volume at the end" much_is_out
touch "$scratch/stop"
status=0
wait "$workload" || status=$?
cat "$scratch/background"
count_load "workload over two swapoffs" "$status" "$scratch/background"
check_swapped_out 90
swapfs down --all
check_nothing_left "at the end"
