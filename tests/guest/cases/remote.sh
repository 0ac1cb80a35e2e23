# guest: --memory 700 --disk 1G --timeout 900 --allow Write-error.on.swap-device
# Memory, and below it a Redis server in the same guest, under real swap. While a verified workload
# runs, the process that serves is killed, the server cuts its connections, and hangs for a while: no
# page is lost, and no program notices. A swap-out may be refused while the server is late, since memory
# in front of it is full: the kernel keeps that page and says so.
#
# The server must not be swapped: its pages could only come back through itself. It has a cgroup of its
# own, which may not swap, and whose memory is not taken for others.
#
# SWAPFS_LONG=1: 50 kills; SWAPFS_KILLS: how many.
. "${0%/*}/lib/guest.sh"

kills=5
if [ "${SWAPFS_LONG:-}" = 1 ]; then
    kills=50
fi
kills="${SWAPFS_KILLS:-$kills}"
RANDOM=$((seed % 32768))
port=6379

make_ext4 /dev/vda /mnt/data
make_cgroup small 45
image=/mnt/data/tier.img

step "a Redis server"
busybox ip link set lo up
mkdir -p /sys/fs/cgroup/server /run/redis
echo 0 >/sys/fs/cgroup/server/memory.swap.max
echo 400M >/sys/fs/cgroup/server/memory.min
in_cgroup server redis-server --port "$port" --bind 127.0.0.1 --save "" --appendonly no --dir /run/redis \
    --maxmemory 350mb --maxmemory-policy noeviction >/run/redis/log 2>&1 &

ask_server() { # WORD...
    redis-cli -p "$port" "$@"
}

answers() { [ "$(ask_server PING 2>&1)" = PONG ]; }
wait_for "the server" answers
server="$(ask_server INFO server | sed -n 's/^process_id:\([0-9]*\).*/\1/p')"
check "the server, process $server, is in its cgroup" grep -qx "$server" /sys/fs/cgroup/server/cgroup.procs

mkswapfs -t tier -s 512M --member zmem,limit=24M \
    --member "remote:/mnt/data/far.img,url=redis://127.0.0.1:$port,capacity=300M" "$image"
swapfs up "$image" --priority 10 --discard=pages
mount="$(mount_of "$image")"
wait_for "standby" has_standby "$mount"

step "140 MiB of pages"
in_cgroup small pageload --megabytes 140 --passes 0 --seed "$seed" --processes 2 --touch mixed \
    --compressible 30 --ready "$scratch/ready" --until "$scratch/stop" >"$scratch/background" 2>&1 &
workload=$!
wait_for_ready() { [ -e "$scratch/ready" ] || ! kill -0 "$workload" 2>/dev/null; }
wait_for "workload ready" wait_for_ready
has_pages_there() { [ "$(pages_on 1)" -gt 3000 ]; }
wait_for "pages on the server" has_pages_there
pages="$(pages_on 1)"
keys="$(ask_server DBSIZE)"
check "the server has $pages pages, $keys keys" [ "$keys" -gt 2000 ]

step "$kills kills of the worker, and of the server's connections"
killed=0
cut=0
while [ "$killed" -lt "$kills" ] && kill -0 "$workload" 2>/dev/null; do
    pause "$((1 + RANDOM % 2)).$((RANDOM % 10))"
    count="$(ask_server CLIENT KILL TYPE normal)" || count=0
    cut=$((cut + count))
    # In the middle of connecting again, now and then.
    pause "0.$((RANDOM % 4))"
    read_number "$mount" worker_pid
    if [ -n "$number" ] && kill -KILL "$number"; then
        killed=$((killed + 1))
    fi
    [ $((killed % 10)) != 0 ] || echo "$killed kills, $cut connections cut, $(pages_on 1) pages there"
done
check "$killed kills of $kills" [ "$killed" = "$kills" ]
check "$cut connections were cut" [ "$cut" -gt "$kills" ]
kill -STOP "$server"
pause 3
kill -CONT "$server"
pause 1
check "the workload still runs" kill -0 "$workload"

touch "$scratch/stop"
status=0
wait "$workload" || status=$?
cat "$scratch/background"
count_load "$killed kills" "$status" "$scratch/background"
check_swapped_out 70
read_pages="$(python3 -c '
import json, sys
print(sum(tier["read_pages"] for tier in json.load(open(sys.argv[1]))["tiers"] if tier["order"] > 0))' \
    "$mount/stats.json")"
check "$read_pages pages were read from the server" [ "$read_pages" -gt 500 ]

all_noticed() {
    read_number "$mount" takeovers
    [ -n "$number" ] && [ "$number" -ge "$killed" ]
}
wait_for "$killed take-overs" all_noticed
swapfs status
check "$number take-overs" all_noticed
read_number "$mount" hangs
check "$number hangs" [ "$number" = 0 ]
refused="$(sed -n 's/.*"errors":{"read":0,"write":\([0-9]*\),"discard":0,"flush":0,"checksum":0}.*/\1/p' "$mount/stats.json")"
check "no request failed but ${refused:-?} swap-outs for which there was no room" [ -n "$refused" ]
check "no heap allocation on the I/O path" grep -q '"heap_allocations_on_io_path":0' "$mount/stats.json"
check_daemon_not_swapped
check "no page of the server was swapped" grep -Eq '^VmSwap:[[:space:]]+0 kB' "/proc/$server/status"
swapfs down "$image"
check_nothing_left "at the end"
check "no key is left on the server ($(ask_server DBSIZE))" [ "$(ask_server DBSIZE)" = 0 ]
