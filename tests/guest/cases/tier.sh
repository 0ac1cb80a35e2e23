# guest: --memory 640 --disk 2G --timeout 1200
# Three tiers under real swap: memory, a log, blocks. While a verified workload runs, a tier is added
# and another one emptied and taken out, and the process that serves is killed again and again, at the
# same time: no page is lost, and no program notices.
#
# SWAPFS_LONG=1: more memory and 50 kills; SWAPFS_KILLS: how many.
. "${0%/*}/lib/guest.sh"

megabytes=230
kills=5
if [ "${SWAPFS_LONG:-}" = 1 ]; then
    megabytes=300
    kills=50
fi
kills="${SWAPFS_KILLS:-$kills}"
RANDOM=$((seed % 32768))

make_ext4 /dev/vda /mnt/data
make_cgroup small 45
image=/mnt/data/tier.img

# A member's image is formatted with its volume; so the third one is made here, taken out while it is
# empty, and added under load.
step "three tiers, and one more for later"
mkswapfs -t tier -s 768M --member zmem,limit=64M \
    --member "log:/mnt/data/log.img,size=256M,segment=1M,high=30,low=25" \
    --member "linear:/mnt/data/blocks.img,size=512M" \
    --member "linear:/mnt/data/more.img,size=512M" "$image"
swapfs up "$image" --priority 10 --discard=pages
mount="$(mount_of "$image")"
wait_for "standby" has_standby "$mount"
uuid="$(sed -n 's/.*"uuid":"\([0-9a-f-]*\)","volume.*/\1/p' "$mount/stats.json")"
[ -n "$uuid" ] || uuid="$(blkid -p -o value -s UUID "$image" 2>/dev/null || true)"
[ -n "$uuid" ] || uuid="$(basename "$(echo /run/swapfs/*.control)" .control)"

ask() { # REQUEST
    python3 "${0%/*}/lib/tier-ask.py" "$uuid" "$1"
}

# As a person would: who has died in between is asked again.
ask_until_done() { # REQUEST
    local status
    while :; do
        status=0
        ask "$1" >"$scratch/asked" 2>&1 || status=$?
        tail -n 1 "$scratch/asked"
        [ "$status" = 2 ] || return "$status"
        pause 0.5
    done
}

ask '{"command":"remove","tier":3,"direction":"auto"}'
check "tiers 0, 1 and 2 are there ($(tiers_now))" [ "$(tiers_now)" = "0 1 2" ]

step "$megabytes MiB of pages"
in_cgroup small pageload --megabytes "$megabytes" --passes 0 --seed "$seed" --processes 2 --touch mixed \
    --compressible 30 --ready "$scratch/ready" --until "$scratch/stop" >"$scratch/background" 2>&1 &
workload=$!
wait_for_ready() { [ -e "$scratch/ready" ] || ! kill -0 "$workload" 2>/dev/null; }
wait_for "workload ready" wait_for_ready
has_pages_below() { [ "$(pages_on 2)" -gt 1000 ]; }
wait_for "pages on the last tier" has_pages_below
for order in 0 1 2; do
    pages="$(pages_on "$order")"
    check "tier $order has $pages pages" [ "$pages" -gt 1000 ]
done

status=0
ask '{"command":"drop"}' >"$scratch/dropped" || status=$?
cat "$scratch/dropped"
check "all pages can't be dropped while it is swap" grep -q 'swapoff' "$scratch/dropped"

step "$kills kills, while tier 3 is added and tier 2 emptied"
killed=0
# Before the workload ends: whoever is killed next goes on with what the last one has begun.
(
    status=0
    ask_until_done '{"command":"add","image":"/mnt/data/more.img"}' || status=$?
    # Killed before it could answer, it may be there already.
    [[ " $(tiers_now) " == *" 3 "* ]] || exit 1
    echo "tier 3 was added, status $status"
    ask '{"command":"remove","tier":2,"direction":"auto","rate_bytes":4194304}' || true
    while [[ " $(tiers_now) " == *" 2 "* ]]; do
        ask '{"command":"watch"}' >"$scratch/watched" 2>&1 || true
        tail -n 1 "$scratch/watched"
        if grep -q 'no tier is being emptied' "$scratch/watched"; then
            # It was killed before it had written down what it was to do.
            ask '{"command":"remove","tier":2,"direction":"auto"}' || true
        fi
        pause 0.5
    done
    echo "tier 2 is gone"
) >"$scratch/changes" 2>&1 &
changes=$!
while [ "$killed" -lt "$kills" ] && kill -0 "$workload" 2>/dev/null; do
    pause "$((2 + RANDOM % 2)).$((RANDOM % 10))"
    read_number "$mount" worker_pid
    if [ -n "$number" ] && kill -KILL "$number"; then
        killed=$((killed + 1))
    fi
    [ $((killed % 10)) != 0 ] || echo "$killed kills, tiers $(tiers_now)"
done
check "$killed kills of $kills" [ "$killed" = "$kills" ]
check "the workload still runs" kill -0 "$workload"
status=0
wait "$changes" || status=$?
tail -n 20 "$scratch/changes"
check "a tier was added and another one emptied, status $status" [ "$status" = 0 ]
check "tiers 0, 1 and 3 are there ($(tiers_now))" [ "$(tiers_now)" = "0 1 3" ]
check "the image of tier 2 can be had by others" \
    python3 -c 'import fcntl; f = open("/mnt/data/blocks.img", "r+b"); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)'

touch "$scratch/stop"
status=0
wait "$workload" || status=$?
cat "$scratch/background"
count_load "$killed kills" "$status" "$scratch/background"
check_swapped_out 150

all_noticed() {
    read_number "$mount" takeovers
    [ -n "$number" ] && [ "$number" -ge "$killed" ]
}
wait_for "$killed take-overs" all_noticed
swapfs status
check "$number take-overs" all_noticed
read_number "$mount" hangs
check "$number hangs" [ "$number" = 0 ]
check "no request failed" \
    grep -q '"errors":{"read":0,"write":0,"discard":0,"flush":0,"checksum":0}' "$mount/stats.json"
check "no heap allocation on the I/O path" grep -q '"heap_allocations_on_io_path":0' "$mount/stats.json"
check "nothing was decompressed to be moved" grep -q '"demotion_decompressions":0' "$mount/stats.json"
check_daemon_not_swapped
swapfs down "$image"
check_nothing_left "at the end"
