# guest: --memory 768 --disk 1G --timeout 400
# What keeps the daemon's processes out of their own swap, as the kernel sees it.
. "${0%/*}/lib/guest.sh"

make_ext4 /dev/vda /mnt/data
image=/mnt/data/swap.img

check_protected() { # NAME PID
    local name="$1" pid="$2" locked_kib resident_kib unprotected='' ordinary='' threads=0 task comm flags policy group
    locked_kib="$(awk '/^VmLck:/ { print $2 }' "/proc/$pid/status")"
    resident_kib="$(awk '/^VmRSS:/ { print $2 }' "/proc/$pid/status")"
    # A page or two that the kernel maps into every process are resident and can't be locked.
    check "$name: locked memory: $locked_kib KiB, resident: $resident_kib KiB" [ $((locked_kib + 16)) -ge "$resident_kib" ]
    check "$name: oom_score_adj is -1000" [ "$(cat "/proc/$pid/oom_score_adj")" = -1000 ]
    for task in "/proc/$pid/task"/*; do
        comm="$(cat "$task/comm")"
        # Behind the name, which may hold blanks: state, ppid, pgrp, session, tty, tpgid, flags.
        flags="$(sed 's/.*) //' "$task/stat" | cut -d ' ' -f 7)"
        # Its 40th and 41st fields are the real-time priority and the policy; 2 is SCHED_RR.
        policy="$(sed 's/.*) //' "$task/stat" | cut -d ' ' -f 38,39)"
        # Who waits populates its memory as an ordinary task: its first thread, and "warm" after it.
        if [ "$policy" != "1 2" ] && [ "$comm" != log ] && [ "$name $comm" != "standby swapfsd-worker" ] && [ "$name $comm" != "standby warm" ]; then
            ordinary+=" $comm"
        fi
        threads=$((threads + 1))
        # PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE: what PR_SET_IO_FLUSHER sets, per thread.
        if [ $((flags & 0x180000)) != $((0x180000)) ]; then
            unprotected+=" $comm"
        fi
    done
    check "$name: all $threads threads are I/O flushers${unprotected:+, but not$unprotected}" [ -z "$unprotected" ]
    check "$name: they are real-time tasks${ordinary:+, but not$ordinary}" [ -z "$ordinary" ]
    group="/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")"
    check "$name: its cgroup ($group) does not swap" [ "$(cat "$group/memory.swap.max" 2>/dev/null)" = 0 ]
}

for engine in sync uring; do
    step "engine=$engine"
    swapfs up "$image" --type linear --size 256M --priority 10 -o "engine=$engine"
    mount="$(mount_of "$image")"
    wait_for "standby" has_standby "$mount"
    # It is counted when it is started.
    sleep 5
    for role in supervisor worker standby; do
        read_number "$mount" "${role}_pid"
        check_protected "$role" "$number"
    done
    swapfs down "$image"
    check_nothing_left "after engine=$engine"
done
