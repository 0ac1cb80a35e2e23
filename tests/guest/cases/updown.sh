# guest: --memory 768 --disk 1G --timeout 900
# Twelve times up and down: nothing is left behind, and no memory is lost.
. "${0%/*}/lib/guest.sh"

make_ext4 /dev/vda /mnt/data
image=/mnt/data/swap.img

free_kib() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    awk '/^MemFree:/ { print $2 }' /proc/meminfo
}

# The most that is free in a few looks: the kernel gives rings and locked pages back a little later
# than the process ends, and some 14 MiB come and go by themselves.
most_free_kib() {
    local most=0 now
    for _ in 1 2 3; do
        now="$(free_kib)"
        [ "$now" -le "$most" ] || most="$now"
        sleep 1
    done
    echo "$most"
}

once() {
    swapfs up "$image" --type linear --size 128M --priority 10 --discard >/dev/null
    pageload --megabytes 16 --passes 0 --seed "$seed" --pageout >"$scratch/load"
    grep -q ' 0 bad;' "$scratch/load"
    swapfs down "$image" >/dev/null
}

# The first ones fill the kernel's caches of slab pages, per-CPU lists and the like.
step "warm up"
for round in 1 2 3; do once; done
first_kib=0
last_kib=0
rounds=0
for round in $(seq 12); do
    step "round $round"
    once || break
    left="$(settled_leftovers)"
    [ -z "$left" ] || break
    rounds=$round
    now_kib="$(most_free_kib)"
    echo "free after round $round: $now_kib KiB"
    if [ "$round" -le 4 ]; then
        [ "$now_kib" -le "$first_kib" ] || first_kib="$now_kib"
    elif [ "$round" -gt 8 ]; then
        [ "$now_kib" -le "$last_kib" ] || last_kib="$now_kib"
    fi
done
check "12 rounds of up, swap, down ($rounds done)" [ "$rounds" = 12 ]
check_nothing_left "at the end"
# A page table or ring that is lost in each round would be eight times as much: below 1 MiB a round is
# noise.
check "free memory: $first_kib KiB at best after the first four rounds, $last_kib KiB after the last four" \
    [ $((first_kib - last_kib)) -lt 8192 ]
