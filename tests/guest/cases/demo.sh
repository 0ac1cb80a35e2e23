# guest: --memory 1024 --disk 1G --timeout 600
# The README's demo, twice to the end and three times interrupted: nothing is left behind.
. "${0%/*}/lib/guest.sh"

make_ext4 /dev/vda /mnt/data

for round in 1 2; do
    step "demo, round $round"
    check "demo, round $round" swapfs demo --megabytes 200 --dir /mnt/data
    check_nothing_left "after demo $round"
    check "the image is gone" [ -z "$(find /mnt/data -type f)" ]
done

image_exists() { [ -n "$(find /mnt/data -type f)" ] || ended; }
area_exists() { grep -q '^/dev/loop' /proc/swaps || ended; }
pages_are_out() { [ "$(swap_used_kib)" -gt 20480 ] || ended; }
ended() { ! kill -0 "$demo" 2>/dev/null; }

for moment in image_exists area_exists pages_are_out; do
    step "SIGINT when $moment"
    # A shell starts background programs with SIGINT ignored.
    env --default-signal=INT swapfs demo --megabytes 200 --dir /mnt/data >"$scratch/demo" 2>&1 &
    demo=$!
    wait_for "$moment" "$moment"
    kill -INT "$demo" || true
    status=0
    wait "$demo" || status=$?
    cat "$scratch/demo"
    check "interrupted when $moment: status $status is not success" [ "$status" != 0 ]
    check_nothing_left "after SIGINT when $moment"
    check "the image is gone" [ -z "$(find /mnt/data -type f)" ]
done
