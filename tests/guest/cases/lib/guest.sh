# What the guest cases share. Sourced by them, in the guest; never run on the machine itself.
# shellcheck shell=bash
set -euo pipefail

[ "${SWAPFS_GUEST:-}" = 1 ] || {
    echo "this runs in the guest only: tests/guest/run-cases ${0##*/}" >&2
    exit 2
}
PATH="$SWAPFS_BIN:$PATH"
case_name="${0##*/}"
case_name="${case_name%.sh}"
seed="${SWAPFS_SEED:-$(date +%s)}"
passed=0
failed=0
bad_pages=0
scratch="$(mktemp -d /tmp/case.XXXXXX)"

echo "$case_name: seed $seed (replay: SWAPFS_SEED=$seed)"

# Also on the kernel's console: its messages can then be placed.
step() { # TEXT
    echo "-- $*"
    echo "case: $*" >/dev/kmsg
}

pass() { # WHAT
    passed=$((passed + 1))
    echo "pass: $*"
}

fail() { # WHAT
    failed=$((failed + 1))
    echo "FAIL: $*"
    echo "case FAIL: $*" >/dev/kmsg
}

check() { # WHAT COMMAND...
    local what="$1"
    shift
    if "$@"; then pass "$what"; else fail "$what"; fi
}

report() {
    local status=$?
    if [ "$status" != 0 ]; then
        fail "the script ended early, status $status"
        state
    fi
    echo "$case_name: $passed passed, $failed failed, $bad_pages bad pages"
    if [ "$failed" != 0 ] || [ "$bad_pages" != 0 ]; then
        exit 1
    fi
}
trap report EXIT
trap 'echo "FAIL: ${BASH_SOURCE[0]##*/} line $LINENO: $BASH_COMMAND"' ERR

# What a person would look at first.
state() {
    echo "state: /proc/swaps"
    cat /proc/swaps || true
    grep -E 'swapfs|loop' /proc/mounts || true
    losetup -a || true
    timeout 20 swapfs status || true
    dmesg | tail -n 20 || true
}

# wait_for WHAT COMMAND...: at most two minutes, for what takes milliseconds when all is well.
wait_for() {
    local what="$1" tries=0
    shift
    until "$@"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 1200 ]; then
            fail "$what: not within two minutes"
            return 1
        fi
        sleep 0.1
    done
}

# A file system on a virtio disk, for images: never tmpfs.
make_ext4() { # DEVICE DIRECTORY
    mkfs.ext4 -q -E nodiscard,lazy_itable_init=0 "$1"
    mkdir -p "$2"
    mount -t ext4 "$1" "$2"
}

# memory.high below the limit slows the workload down while its pages are being written. With
# memory.max alone, a cgroup of 60 MiB was seen with every page under write-back on the way to a
# slow disk, and Linux 6.12 (multi-generational LRU) calls the OOM killer instead of waiting.
make_cgroup() { # NAME MEGABYTES
    mkdir -p "/sys/fs/cgroup/$1"
    limit_cgroup "$1" "$2"
}

limit_cgroup() { # NAME MEGABYTES
    echo "$(($2 * 8 / 10))M" >"/sys/fs/cgroup/$1/memory.high"
    echo "$2M" >"/sys/fs/cgroup/$1/memory.max"
}

# Else the workload's cgroup could not take its pages back, and would be killed for it.
unlimit_cgroup() { # NAME
    echo max >"/sys/fs/cgroup/$1/memory.max"
    echo max >"/sys/fs/cgroup/$1/memory.high"
}

in_cgroup() { # NAME COMMAND...
    local group="$1"
    shift
    (
        echo "$BASHPID" >"/sys/fs/cgroup/$group/cgroup.procs"
        exec "$@"
    )
}

# load WHAT COMMAND...: runs a command that ends in a pageload, counts its bad pages. Its line is
# left in $load_line.
load_line=
load() {
    local what="$1" status=0 output="$scratch/load"
    shift
    "$@" >"$output" 2>&1 || status=$?
    cat "$output"
    count_load "$what" "$status" "$output"
}

count_load() { # WHAT STATUS OUTPUT
    local bad
    load_line="$(grep '^pageload: .* bad;' "$3" || true)"
    bad="$(sed -n 's/.* \([0-9]*\) bad;.*/\1/p' <<<"$load_line")"
    bad_pages=$((bad_pages + ${bad:-0}))
    if [ "$2" = 0 ] && [ "$bad" = 0 ]; then
        pass "$1: 0 bad pages"
    else
        fail "$1: pageload ended with $2, ${bad:-no count of} bad pages"
    fi
}

pages_swapped_out() {
    sed -n 's/.*; \([0-9]*\) swapped out.*/\1/p' <<<"$load_line"
}

# That the workload really went through swap, not only through memory.
check_swapped_out() { # MEGABYTES
    local pages
    pages="$(pages_swapped_out)"
    check "at least $1 MiB went out (${pages:-0} pages)" [ "${pages:-0}" -ge $(($1 * 256)) ]
}

swap_used_kib() { # [DEVICE]
    awk -v device="${1:-}" 'NR > 1 && (device == "" || $1 == device) { sum += $4 } END { print sum + 0 }' /proc/swaps
}

swap_device_of() { # IMAGE: the loop device on it
    local mountpoint
    mountpoint="$(mount_of "$1")"
    losetup -a | grep -F "($mountpoint/swapfile)" | cut -d : -f 1
}

mount_of() { # IMAGE
    awk -v image="$1" '$1 == image && $3 == "fuse.swapfs" { print $2 }' /proc/mounts
}

# read_number MOUNT NAME: a number of stats.json, into $number; empty if it is null. By the shell
# alone: on a machine whose memory is full a new process takes long.
number=
read_number() {
    local text=
    number=
    read -r text <"$1/stats.json" || true
    if [[ $text =~ \"$2\":([0-9]+) ]]; then
        number="${BASH_REMATCH[1]}"
    fi
}

# Of a volume of tiers at $mount: the orders of those that there are.
tiers_now() {
    python3 -c '
import json, sys
print(*(tier["order"] for tier in json.load(open(sys.argv[1]))["tiers"]))' "${mount:?}/stats.json"
}

# How many pages lie on one of them.
pages_on() { # ORDER
    python3 -c '
import json, sys
tiers = json.load(open(sys.argv[1]))["tiers"]
print(next((tier["pages"] for tier in tiers if tier["order"] == int(sys.argv[2])), 0))' \
        "${mount:?}/stats.json" "$1"
}

# pause SECONDS: without a process of its own, for the same reason.
mkfifo "$scratch/never"
pause() {
    read -r -t "$1" <>"$scratch/never" || true
}

# daemon_ids MOUNT: supervisor, worker and standby, as long as nobody has died.
daemon_ids() {
    local name ids=
    for name in supervisor_pid worker_pid standby_pid; do
        read_number "$1" "$name"
        ids+=" $name=$number"
    done
    echo "${ids# }"
}

has_standby() { # MOUNT
    read_number "$1" standby_pid
    [ -n "$number" ]
}

# has_ended DIRECTORY: the process has only to be cleared away by its parent.
has_ended() {
    local stat
    read -r stat <"$1/stat" || return 0
    # Behind the name, which may hold anything.
    [[ "${stat##*) }" == [ZX]* ]]
}

# All processes of the daemon: the supervisor is swapfsd; those who serve or wait, and who share
# memory with them, are swapfsd-worker.
daemon_processes() {
    local process name
    for process in /proc/[0-9]*; do
        read -r name <"$process/comm" || continue
        case "$name" in
        swapfsd | swapfsd-worker) has_ended "$process" || echo "${process#/proc/}" ;;
        esac
    done 2>/dev/null
}

check_daemon_not_swapped() {
    local pid count=0 swapped=
    for pid in $(daemon_processes); do
        # One that has ended meanwhile has no pages.
        [ -r "/proc/$pid/status" ] || continue
        count=$((count + 1))
        grep -E 'Name|VmLck|VmSwap|VmRSS' "/proc/$pid/status" | tr -s '\n\t ' ' ' || true
        echo
        # A zombie has no such line.
        if grep -q '^VmSwap:' "/proc/$pid/status" && ! grep -Eq '^VmSwap:[[:space:]]+0 kB' "/proc/$pid/status"; then
            swapped+=" $pid"
        fi
    done
    [ "$count" -gt 0 ] || swapped=" nobody: there is none"
    check "no page of the daemon's $count processes was swapped${swapped:+, but of$swapped}" [ -z "$swapped" ]
}

# Everything that up makes. Kept as text so that a failure can be shown.
leftovers() {
    awk 'NR > 1 { print "swap area: " $1 }' /proc/swaps
    losetup -a | sed 's/^/loop device: /'
    grep -E ' fuse\S* ' /proc/mounts | grep -v fusectl | sed 's/^/mount: /' || true
    # No program per process: starting one takes long in an emulated guest.
    local process name
    for process in /proc/[0-9]*; do
        read -r name <"$process/comm" || continue
        case "$name" in
        swapfs* | mkswapfs | mount-swapfs | mount.swapfs)
            has_ended "$process" || echo "process: $name, ${process#/proc/}"
            ;;
        esac
    done 2>/dev/null
    find /run/swapfs -mindepth 1 2>/dev/null | sed 's/^/file: /' || true
    find /sys/fs/cgroup -type d -name '*swapfs*' | sed 's/^/cgroup: /'
}

# Whoever takes the memory of a worker down ends a little after the daemon.
settled_leftovers() {
    local left tries=0
    left="$(leftovers)"
    while [[ "$left" == process:* ]] && [ "$tries" -lt 50 ]; do
        tries=$((tries + 1))
        sleep 0.1
        left="$(leftovers)"
    done
    echo "$left"
}

check_nothing_left() { # WHEN
    local left
    left="$(settled_leftovers)"
    if [ -z "$left" ]; then
        pass "nothing left behind $1"
    else
        fail "left behind $1:"
        echo "$left"
    fi
}

# refused COMMAND...: it must fail, and say why.
refused() {
    if "$@" >"$scratch/refused" 2>&1; then
        echo "it was not refused: $*"
        return 1
    fi
    sed 's/^/refused: /' "$scratch/refused"
    [ -s "$scratch/refused" ]
}
