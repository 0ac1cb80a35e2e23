# guest: --memory 768 --disk 1G --timeout 400
# What keeps the daemon out of its own swap, as the kernel sees it.
. "${0%/*}/lib/guest.sh"

make_ext4 /dev/vda /mnt/data
image=/mnt/data/swap.img
for engine in sync uring; do
    step "engine=$engine"
    swapfs up "$image" --type linear --size 256M --priority 10 -o "engine=$engine"
    daemon="$(pidof swapfsd)"
    locked_kib="$(awk '/^VmLck:/ { print $2 }' "/proc/$daemon/status")"
    resident_kib="$(awk '/^VmRSS:/ { print $2 }' "/proc/$daemon/status")"
    check "locked memory: $locked_kib KiB, resident: $resident_kib KiB" [ "$locked_kib" -ge "$resident_kib" ]
    check "oom_score_adj is -1000" [ "$(cat "/proc/$daemon/oom_score_adj")" = -1000 ]
    unprotected=
    ordinary=
    threads=0
    for task in "/proc/$daemon/task"/*; do
        # Behind the name, which may hold blanks: state, ppid, pgrp, session, tty, tpgid, flags.
        flags="$(sed 's/.*) //' "$task/stat" | cut -d ' ' -f 7)"
        # Its 40th and 41st fields are the real-time priority and the policy; 2 is SCHED_RR.
        policy="$(sed 's/.*) //' "$task/stat" | cut -d ' ' -f 38,39)"
        [ "$policy" = "1 2" ] || [ "$(cat "$task/comm")" = log ] || ordinary+=" $(cat "$task/comm")"
        threads=$((threads + 1))
        # PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE: what PR_SET_IO_FLUSHER sets, per thread.
        if [ $((flags & 0x180000)) != $((0x180000)) ]; then
            unprotected+=" $(cat "$task/comm")"
        fi
    done
    check "all $threads threads are I/O flushers${unprotected:+, but not$unprotected}" [ -z "$unprotected" ]
    check "they are real-time tasks${ordinary:+, but not$ordinary}" [ -z "$ordinary" ]
    group="/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$daemon/cgroup")"
    check "its cgroup ($group) does not swap" \
        [ "$(cat "$group/memory.swap.max" 2>/dev/null)" = 0 ]
    swapfs down "$image"
    check_nothing_left "after engine=$engine"
done
