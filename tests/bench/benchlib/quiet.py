"""What others do on this machine while we measure.

Neighbours do not only make figures worse: a busy neighbour keeps the CPUs from halting, and a
wake-up that finds a CPU awake takes a third of the time. So neither the median nor the best of
disturbed samples means anything; disturbed samples are taken again.
"""

import os
import pathlib
import time

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Of one CPU. Background noise of an idle system stays below.
QUIET_SHARE = 0.03
LOOK_S = 0.15
KERNEL_THREADD_PID = 2


def _processes():
    """pid -> (parent, ticks of the process, the same with its reaped children)."""
    processes = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            fields = pathlib.Path(entry.path, "stat").read_text().rsplit(") ", 1)[1].split()
        except (OSError, IndexError):
            continue
        ticks = [int(field) for field in fields[11:15]]
        processes[int(entry.name)] = (int(fields[1]), sum(ticks[:2]), sum(ticks))
    return processes


def _is_ours(pid, processes):
    """This process, what it started, and the kernel's own threads, which work for it."""
    ours = (os.getpid(), KERNEL_THREADD_PID)
    while pid in processes:
        if pid in ours:
            return True
        pid = processes[pid][0]
    return False


class Watch:
    """Measures what others use between its start and `share()`."""

    def __init__(self):
        self.start_s = time.monotonic()
        self.before = _processes()
        self.steal_before_ticks = steal_ticks()

    def share(self):
        """CPU time of foreign processes and of the host's other guests, in CPUs."""
        span_ticks = max(1.0, (time.monotonic() - self.start_s) * TICKS_PER_S)
        after = _processes()
        foreign_before = {pid for pid in self.before if not _is_ours(pid, self.before)}
        foreign_after = {pid for pid in after if not _is_ours(pid, after)}
        # A process that ends hands its ticks to its parent, so the sum loses nothing, unless the
        # parent does not wait for it: then what the living used is nearer.
        whole = sum(after[pid][2] for pid in foreign_after)
        whole -= sum(self.before[pid][2] for pid in foreign_before)
        living = sum(
            after[pid][1] - self.before[pid][1] for pid in foreign_before & foreign_after
        )
        stolen = steal_ticks() - self.steal_before_ticks
        return (max(whole, living, 0) + stolen) / span_ticks


def steal_ticks():
    """Time that this machine's CPUs wanted to run and the host did not let them."""
    return int(pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])


def wait(limit_s):
    """Waits until the others are quiet, at most so long."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        watch = Watch()
        time.sleep(LOOK_S)
        if watch.share() <= QUIET_SHARE:
            return
