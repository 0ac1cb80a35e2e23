# guest: --memory 512 --disk 2G --timeout 1500
# The process that serves is killed while more memory is in use than the machine has, without any
# cgroup limit: who takes over has to do so without memory that only it could free.
#
# SWAPFS_LONG=1: more memory, more kills; SWAPFS_PRESSURE_KILLS: how many, for each type.
. "${0%/*}/lib/guest.sh"

linear_mb=600
zmem_mb=480
kills=6
if [ "${SWAPFS_LONG:-}" = 1 ]; then
    linear_mb=700
    zmem_mb=560
    kills=10
fi
kills="${SWAPFS_PRESSURE_KILLS:-$kills}"
RANDOM=$((seed % 32768))

make_ext4 /dev/vda /mnt/data
image=/mnt/data/swap.img

much_is_out() { [ "$(swap_used_kib)" -gt $((120 * 1024)) ]; }

kill_when_full() { # TYPE MEGABYTES COMPRESSIBLE UP_ARGUMENT...
    local type="$1" megabytes="$2" compressible="$3" mount workload status=0 killed=0
    shift 3
    step "$type: $megabytes MiB in a machine of 512"
    swapfs up "$image" --type "$type" --priority 10 --discard=pages "$@"
    mount="$(mount_of "$image")"
    wait_for "standby" has_standby "$mount"
    rm -f "$scratch/stop"
    pageload --megabytes "$megabytes" --passes 0 --seed "$seed" --processes 3 --touch mixed \
        --compressible "$compressible" --until "$scratch/stop" >"$scratch/background" 2>&1 &
    workload=$!
    wait_for "$type: memory is full" much_is_out
    while [ "$killed" -lt "$kills" ] && kill -0 "$workload" 2>/dev/null; do
        read_number "$mount" worker_pid
        if [ -n "$number" ] && kill -KILL "$number"; then
            killed=$((killed + 1))
            echo "$type: killed worker $number, $killed of $kills"
        fi
        # Not before the next standby can have come up: without one, a machine whose memory is full may
        # not have the memory to start one (swapfsd(8), CAVEATS).
        pause "$((3 + RANDOM % 4)).$((RANDOM % 10))"
    done
    check "$type: $killed kills of $kills" [ "$killed" = "$kills" ]
    touch "$scratch/stop"
    wait "$workload" || status=$?
    cat "$scratch/background"
    count_load "$type: $killed kills" "$status" "$scratch/background"
    check_swapped_out 100
    swapfs status
    read_number "$mount" takeovers
    check "$type: $number take-overs" [ "${number:-0}" -ge "$killed" ]
    read_number "$mount" hangs
    check "$type: $number hangs" [ "$number" = 0 ]
    check_daemon_not_swapped
    swapfs down "$image"
    check_nothing_left "after $type"
    rm "$image"
}

kill_when_full linear "$linear_mb" 50 --size 1G
kill_when_full zmem "$zmem_mb" 75 --size 2G -o limit=300M
