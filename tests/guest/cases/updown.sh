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

# The kernel gives rings and locked pages back a little later than the process ends (seen: 28 MiB on
# a busy host): the most that is free in a few looks, or as much as is asked for.
settled_free_kib() { # ENOUGH_KIB LOOKS
    local most=0 now
    for _ in $(seq "$2"); do
        now="$(free_kib)"
        [ "$now" -le "$most" ] || most="$now"
        [ "$most" -lt "$1" ] || break
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
before_kib="$(settled_free_kib 99999999 8)"
rounds=0
for round in $(seq 12); do
    step "round $round"
    once || break
    left="$(settled_leftovers)"
    [ -z "$left" ] || break
    rounds=$round
    [ $((round % 5)) != 0 ] || echo "free after round $round: $(settled_free_kib "$before_kib" 10) KiB of $before_kib"
done
check "12 rounds of up, swap, down ($rounds done)" [ "$rounds" = 12 ]
check_nothing_left "at the end"
# A lost page table or ring of one round would be 12 times as much: 600 KiB a round is noise.
after_kib="$(settled_free_kib "$before_kib" 60)"
check "free memory: $before_kib KiB before, $after_kib KiB after" [ $((before_kib - after_kib)) -lt 8192 ]
