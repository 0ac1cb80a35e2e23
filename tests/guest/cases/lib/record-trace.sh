# guest: --memory 500 --disk 1G --timeout 400
# Records what real programs with too little memory swap, for `tier-policy --recorded`. Not a case:
# `tests/guest/run --memory 500 --disk 1G tests/guest/cases/lib/record-trace.sh`; the trace is
# printed at the end, as base64 of gzip between two lines.
. "${0%/*}/guest.sh"

make_ext4 /dev/vda /mnt/data
image=/mnt/data/swap.img
trace=/mnt/data/swap.trace
swapfs up "$image" --type linear --size 400M --priority 10 --discard=pages -o "trace=$trace"
make_cgroup small 40

# A dictionary that is built, then read and written with a preference for some of its words.
cat >/run/work.py <<'PYTHON'
import random, time
random.seed(7)
end = time.time() + 45
words = {}
for i in range(250000):
    words["word%d" % (i * 7919 % 1000003)] = [i, str(i)]
keys = list(words)
while time.time() < end:
    words[keys[int(len(keys) ** random.random())]][0] += 1
PYTHON
# And a compressor with a window that is larger than its memory.
{ cat /usr/bin/q* /usr/bin/python3* 2>/dev/null || true; } | head -c 12M >/mnt/data/input
(in_cgroup small timeout 110 python3 /run/work.py || true) &
(in_cgroup small timeout 100 xz -T1 -6 -c /mnt/data/input >/dev/null || true) &
wait
# What is still in the daemon's queue.
sleep 1
cp "$trace" /run/copy
echo "TRACE BEGINS"
gzip -9 -c /run/copy | base64 -w 200
echo "TRACE ENDS"
swapfs down "$image"
