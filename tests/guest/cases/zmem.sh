# guest: --memory 448 --disk 256M --timeout 600 --allow (Write-error.on.swap-device|Killed.process|oom-kill|page.allocation.failure)
# Compressed memory and nothing else to swap to: a workload larger than the machine's memory, in
# several processes, then one that does not fit at any price.
#
# SWAPFS_LONG=1: more memory.
. "${0%/*}/lib/guest.sh"

megabytes=420
passes=0
beyond_mb=500
if [ "${SWAPFS_LONG:-}" = 1 ]; then
    megabytes=490
    passes=1
    beyond_mb=600
fi

make_ext4 /dev/vda /mnt/data
image=/mnt/data/zmem.img

step "$megabytes MiB in a machine of 448, three quarters of it compressible"
swapfs up "$image" --size 2G --priority 10 -o limit=260M
mount="$(mount_of "$image")"
wait_for "standby" has_standby "$mount"
daemon="$(daemon_ids "$mount")"
swapfs status
load "compressible, 3 processes" \
    pageload --megabytes "$megabytes" --passes "$passes" --seed "$seed" --processes 3 --touch mixed --compressible 75
check_swapped_out 100
swapfs status
check "the daemon is the same" [ "$(daemon_ids "$mount")" = "$daemon" ]
check_daemon_not_swapped
swapfs down "$image"
check_nothing_left "after the compressible workload"
rm "$image"

# Pages that do not compress, and a limit far below what they take: swap-outs are refused, and the
# kernel keeps the pages. They all fit into memory and limit together.
step "at the limit: 180 MiB that do not compress, a limit of 64 MiB"
swapfs up "$image" --size 2G --priority 10 -o limit=64M
mount="$(mount_of "$image")"
wait_for "standby" has_standby "$mount"
daemon="$(daemon_ids "$mount")"
load "at the limit" \
    pageload --megabytes 180 --passes 0 --seed "$seed" --processes 2 --compressible 0 --pageout
swapfs status
check "swap-outs were refused" \
    sh -c 'swapfs status --json | grep -Eq "\"refused_writes\": *[1-9]"'

# Here they do not fit, and the kernel does not see it: the slots are free. The daemon sees it, and
# asks for the OOM killer, which takes the workload.
step "beyond: $beyond_mb MiB"
status=0
timeout --signal=KILL 300 pageload --megabytes "$beyond_mb" --passes 0 --seed "$seed" --processes 2 \
    --compressible 0 >"$scratch/beyond" 2>&1 || status=$?
cat "$scratch/beyond"
check "no wrong page" sh -c "! grep -Eq '[1-9][0-9]* bad' '$scratch/beyond'"
check "the workload did not fit (status $status)" [ "$status" != 0 ]
check "and it was not ended by time" [ "$status" != 137 ]
check "the daemon is the same" [ "$(daemon_ids "$mount")" = "$daemon" ]
swapfs status --json | grep -E 'oom_calls|refused'
swapfs down "$image"
check_nothing_left "after the limit"
rm "$image"

step "it works as before"
swapfs up "$image" --size 512M --priority 10
load "afterwards" pageload --megabytes 60 --passes 1 --seed "$seed" --pageout
check_swapped_out 60
swapfs down "$image"
check_nothing_left "at the end"
