"""The fio jobs: one row of kernel-facts.md each, and what is read from fio's answer."""

import dataclasses
import json

from . import quiet
from .host import BenchError, program, run

MS_PER_S = 1000
JOB_GRACE_S = 30
QUIET_WAIT_S = 10


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement."""

    name: str
    title: str
    unit: str
    pattern: str
    block_bytes: int
    depth: int

    @property
    def is_latency(self):
        """Lower is better."""
        return self.unit == "us"


JOBS = [
    Job("w512k-d8", "512 KiB write, depth 8", "MB/s", "write", 512 << 10, 8),
    Job("w4k-d1", "4 KiB random write, depth 1", "us", "randwrite", 4096, 1),
    Job("r4k-d1", "4 KiB random read, depth 1", "us", "randread", 4096, 1),
    Job("r32k-d1", "32 KiB random read, depth 1", "us", "randread", 32 << 10, 1),
    Job("r4k-d32", "4 KiB random read, depth 32", "k/s", "randread", 4096, 32),
    Job("w4k-d32", "4 KiB random write, depth 32", "k/s", "randwrite", 4096, 32),
    Job("rw4k-d32", "4 KiB random mixed 1:1, depth 32", "k/s", "randrw", 4096, 32),
]

# How fio fills what it writes. Daemons that only move bytes do not care; zram does.
DATA = {
    "random": [],
    # Without the last option fio refills each buffer, and its speed is measured instead.
    "sixty": [
        "--buffer_compress_percentage=60",
        "--buffer_compress_chunk=4096",
        "--refill_buffers=0",
    ],
    "zero": ["--zero_buffers"],
}


def fio_command(target, size_bytes, pattern, block_bytes, depth, data, cpus=None):
    """The options that all jobs have in common."""
    command = [
        program("fio"),
        "--name=bench",
        f"--filename={target}",
        "--ioengine=libaio",
        "--direct=1",
        "--thread",
        f"--rw={pattern}",
        f"--bs={block_bytes}",
        f"--iodepth={depth}",
        f"--size={size_bytes}",
        "--norandommap",
        "--randrepeat=0",
        "--allow_mounted_write=0",
        "--output-format=json",
        *DATA[data],
    ]
    if cpus is not None:
        command.append(f"--cpus_allowed={cpus}")
    return command


def write_once(target, size_bytes, data):
    """Writes the whole range, so that reads find data and not holes."""
    run(
        [*fio_command(target, size_bytes, "write", 1 << 20, 8, data)],
        timeout_s=JOB_GRACE_S + size_bytes / 5e6,
    )


def measure_once(job, target, size_bytes, data, runtime_s, cpus=None):
    """Runs one job and gives its figure in the job's unit, with what helps to judge it."""
    command = [
        *fio_command(target, size_bytes, job.pattern, job.block_bytes, job.depth, data, cpus),
        "--time_based",
        f"--runtime={round(runtime_s * MS_PER_S)}ms",
        f"--ramp_time={round(runtime_s * MS_PER_S / 8)}ms",
    ]
    watch = quiet.Watch()
    text = run(command, timeout_s=runtime_s * 2 + JOB_GRACE_S)
    foreign = watch.share()
    try:
        # Warnings may stand before the JSON.
        result = json.loads(text[text.index("{") :])["jobs"][0]
        sides = [side for side in (result["read"], result["write"]) if side["total_ios"] > 0]
        if result["error"] != 0 or not sides:
            raise BenchError(f"fio {job.name} on {target}: error {result['error']}")
    except (ValueError, KeyError, IndexError) as error:
        raise BenchError(f"fio {job.name} on {target}: no result: {text[-300:]}") from error
    figure = {
        "MB/s": lambda: sum(side["bw_bytes"] for side in sides) / 1e6,
        "k/s": lambda: sum(side["iops"] for side in sides) / 1e3,
        "us": lambda: sides[0]["lat_ns"]["mean"] / 1e3,
    }[job.unit]()
    percentile = sides[0].get("clat_ns", {}).get("percentile", {})
    return {
        "figure": figure,
        "p50_us": percentile.get("50.000000", 0) / 1e3,
        "p99_us": percentile.get("99.000000", 0) / 1e3,
        "foreign": foreign,
    }


def measure(job, target, size_bytes, data, runtime_s, cpus=None, tries=1):
    """One figure: of up to `tries` samples, the first that others left alone, else the least
    disturbed."""
    samples = []
    for _ in range(tries):
        if tries > 1:
            quiet.wait(QUIET_WAIT_S)
        samples.append(measure_once(job, target, size_bytes, data, runtime_s, cpus))
        if samples[-1]["foreign"] <= quiet.QUIET_SHARE:
            break
    return min(samples, key=lambda sample: sample["foreign"])
