# guest: --memory 768 --disk 512M --timeout 400 --allow (Read|Write)-error.on.swap-device
# Supervisor, worker and standby killed at once: then the pages are lost, which is said, and all the
# rest can be taken down. The same without a supervisor.
. "${0%/*}/lib/guest.sh"

make_ext4 /dev/vda /mnt/data
# Not on tmpfs: its pages may be among those that are lost.
output=/mnt/data/background
image=/mnt/data/zmem.img
make_cgroup small 40

nobody_left() { [ -z "$(daemon_processes)" ]; }

kill_all() { # MOUNT
    local pids=() name
    for name in supervisor_pid standby_pid worker_pid; do
        read_number "$1" "$name"
        [ -z "$number" ] || pids+=("$number")
    done
    # None that is stopped can do anything about the death of the others.
    kill -STOP "${pids[@]}"
    sleep 1
    kill -KILL "${pids[@]}"
    wait_for "all have ended" nobody_left
}

for options in limit=200M supervisor=off; do
    step "$options"
    swapfs up "$image" --size 256M --priority 10 -o "$options" | tee "$scratch/up"
    mount="$(mount_of "$image")"
    case "$options" in
    supervisor=off)
        check "up says that nobody guards it" grep -q '^UNGUARDED supervisor=off' "$scratch/up"
        swapfs status >"$scratch/status"
        check "and so does status" grep -q 'UNGUARDED: supervisor=off' "$scratch/status"
        check "there is no upgrade" refused swapfs upgrade "$image"
        ;;
    *)
        check "up says that it is guarded" grep -q '^guarded ' "$scratch/up"
        wait_for "standby" has_standby "$mount"
        ;;
    esac
    rm -f "$scratch/ready" "$scratch/stop"
    in_cgroup small pageload --megabytes 100 --passes 0 --seed "$seed" \
        --ready "$scratch/ready" --until "$scratch/stop" >"$output" 2>&1 &
    workload=$!
    wait_for "workload ready" test -e "$scratch/ready"
    # So that the pages stay where they are until status has been asked.
    echo 1 >/sys/fs/cgroup/small/cgroup.freeze
    kill_all "$mount"
    swapfs status | tee "$scratch/status"
    check "status says what is lost" grep -Eq \
        'daemon and its supervisor have died: [0-9.]+ [KM]iB that were swapped out are lost' "$scratch/status"
    echo 0 >/sys/fs/cgroup/small/cgroup.freeze
    touch "$scratch/stop"
    status=0
    wait "$workload" || status=$?
    cat "$output"
    check "the program that needs the pages has ended (status $status)" [ "$status" != 0 ]
    check "and no wrong page was seen" sh -c "! grep -Eq '[1-9][0-9]* bad' '$output'"
    check "down" swapfs down "$image"
    # Nobody is left who could have removed it.
    find /sys/fs/cgroup -depth -type d -name 'swapfsd-*' -exec rmdir {} +
    check_nothing_left "after $options"
    rm "$image"
done
