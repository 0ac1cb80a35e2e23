# The process that serves is killed again and again under real swap, and exchanged by `swapfs
# upgrade` in between. Sourced by the cases that do this.
# shellcheck shell=bash

# SWAPFS_LONG=1: the long version; SWAPFS_KILLS, SWAPFS_UPGRADES: how many, for each type.
kills=20
upgrades=3
if [ "${SWAPFS_LONG:-}" = 1 ]; then
    kills=100
    upgrades=10
fi
kills="${SWAPFS_KILLS:-$kills}"
upgrades="${SWAPFS_UPGRADES:-$upgrades}"
RANDOM=$((seed % 32768))

# A take-over may be under way just now, or take long on a busy machine: then it is refused, and
# nothing has changed.
upgrade() { # IMAGE
    local try
    for try in 1 2 3 4 5; do
        if swapfs upgrade "$1" >"$scratch/upgrade" 2>&1; then
            return 0
        fi
        sed "s/^/try $try: /" "$scratch/upgrade"
        grep -Eq 'take-over is under way|does not answer' "$scratch/upgrade" || return 1
        pause 1
    done
    return 1
}

kill_under_load() { # TYPE UP_ARGUMENT...
    local type="$1" image="/mnt/data/$1.img" mount workload status=0 killed=0 upgraded=0 milliseconds
    shift
    step "$type: up"
    swapfs up "$image" --priority 10 --discard=pages "$@"
    mount="$(mount_of "$image")"
    read_number "$mount" supervisor_pid
    check "$type: it has a supervisor" [ -n "$number" ]
    rm -f "$scratch/ready" "$scratch/stop"
    in_cgroup small pageload --megabytes 120 --passes 0 --seed "$seed" --processes 2 --touch mixed \
        --ready "$scratch/ready" --until "$scratch/stop" >"$scratch/background" 2>&1 &
    workload=$!
    wait_for "$type: workload ready" test -e "$scratch/ready"

    step "$type: $kills kills, $upgrades upgrades"
    while [ "$killed" -lt "$kills" ] && kill -0 "$workload" 2>/dev/null; do
        milliseconds=$((50 + RANDOM % 451))
        pause "$(printf '0.%03d' "$milliseconds")"
        # Answered by the one that serves, so it is not killed before it does.
        read_number "$mount" worker_pid
        if [ -n "$number" ] && kill -KILL "$number"; then
            killed=$((killed + 1))
        fi
        if [ "$upgraded" -lt $((killed * upgrades / kills)) ]; then
            upgrade "$image" || break
            upgraded=$((upgraded + 1))
        fi
        [ $((killed % 10)) != 0 ] || echo "$type: $killed kills, $upgraded upgrades"
    done
    check "$type: $killed kills of $kills" [ "$killed" = "$kills" ]
    check "$type: $upgraded upgrades of $upgrades" [ "$upgraded" = "$upgrades" ]
    check "$type: the workload still runs" kill -0 "$workload"
    # What else a type has to show under load.
    if declare -F under_load >/dev/null; then
        under_load "$mount"
    fi
    touch "$scratch/stop"
    wait "$workload" || status=$?
    cat "$scratch/background"
    count_load "$type: $killed kills" "$status" "$scratch/background"
    check_swapped_out 70

    all_noticed() {
        read_number "$mount" takeovers
        [ -n "$number" ] && [ "$number" -ge "$killed" ]
    }
    wait_for "$type: $killed take-overs" all_noticed
    swapfs status
    check "$type: $number take-overs" all_noticed
    read_number "$mount" upgrades
    check "$type: $number upgrades are counted" [ "$number" = "$upgraded" ]
    read_number "$mount" hangs
    check "$type: $number hangs" [ "$number" = 0 ]
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
