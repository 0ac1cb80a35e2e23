"""Processes, mounts and loop devices: brought up with a way to take each of them down."""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

COMMAND_TIMEOUT_S = 30
READY_TIMEOUT_S = 30
STOP_TIMEOUT_S = 10


class BenchError(Exception):
    """Something went wrong; the text is for the user."""


class Missing(BenchError):
    """A system cannot run here; the text is the reason, and the others go on."""


def run(command, timeout_s=COMMAND_TIMEOUT_S, check=True):
    """Runs a command to its end and gives its standard output."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )
    except FileNotFoundError as error:
        raise Missing(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{shlex.join(command)}: no end after {timeout_s} s") from error
    if check and done.returncode != 0:
        raise BenchError(
            f"{shlex.join(command)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def program(name, directories=()):
    """Finds a program in the given directories, then in the PATH."""
    for directory in directories:
        path = pathlib.Path(directory) / name
        if os.access(path, os.X_OK):
            return str(path)
    path = shutil.which(name)
    if path is None:
        raise Missing(f"{name} is not installed")
    return path


def read_text(path, default=""):
    """The content of a small file such as those in /proc and /sys."""
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return default


def raise_on_sigterm():
    """Makes SIGTERM and SIGHUP unwind like Ctrl-C, so that everything is cleaned up."""

    def interrupt(number, _frame):
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


@contextlib.contextmanager
def scratch(parent=None):
    """A directory of our own, gone at the end."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="swapfs-bench-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def daemon(command, log_path, env=None):
    """A process in the foreground of its own session: Ctrl-C reaches us first, it comes last."""
    command = [str(word) for word in command]
    with open(log_path, "wb") as log:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        except FileNotFoundError as error:
            raise Missing(f"{command[0]} is not installed") from error
    process.log_path = log_path
    try:
        yield process
    finally:
        stop(process)


def stop(process):
    """Waits a moment for a process that should end by itself, then ends it."""
    for send in (None, process.terminate, process.kill):
        if send is not None:
            send()
        try:
            process.wait(1 if send is None else STOP_TIMEOUT_S)
            return
        except subprocess.TimeoutExpired:
            continue


def file_bytes(path):
    """The size of a file or block device, asked with a timeout: the file may be a daemon's."""
    done = run(["timeout", "5", "stat", "-L", "-c", "%s %F %d", path], check=False).split(" ", 1)
    return int(done[0]) if len(done) == 2 else None


def wait_served(process, path, smallest_bytes):
    """Waits until the daemon serves `path` with at least that many bytes."""
    end = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            text = read_text(process.log_path)
            raise BenchError(f"{process.args[0]} ended with {process.returncode}: {text[-600:]}")
        size = file_bytes(path)
        if size is not None and size >= smallest_bytes:
            return
        time.sleep(0.05)
    raise BenchError(f"{process.args[0]}: no {path} after {READY_TIMEOUT_S} s")


@contextlib.contextmanager
def unmounting(path):
    """Unmounts `path` at the end, lazily if it must be."""
    try:
        yield
    finally:
        if str(path) in mounts():
            try:
                run(["umount", path], STOP_TIMEOUT_S)
            except BenchError:
                run(["umount", "-l", path], STOP_TIMEOUT_S, check=False)


def mounts():
    """All mount points, with the kernel's escapes undone."""
    points = (line.split()[4] for line in read_text("/proc/self/mountinfo").splitlines())
    return {re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), point) for point in points}


@contextlib.contextmanager
def loop(path, queue_settings=None):
    """A loop device as swapfs attaches it: direct I/O, 4 KiB blocks, no write-back throttling."""
    device = run(
        ["losetup", "--direct-io=on", "--sector-size", "4096", "-f", "--show", path]
    ).strip()
    try:
        sys_block = pathlib.Path("/sys/block") / pathlib.Path(device).name
        # The kernel drops the flag without a word when the file cannot do direct I/O.
        if read_text(sys_block / "loop/dio") != "1":
            raise BenchError(f"{device} on {path}: direct I/O is off")
        block_bytes = read_text(sys_block / "queue/logical_block_size")
        if block_bytes != "4096":
            raise BenchError(f"{device} on {path}: blocks of {block_bytes} bytes")
        # Throttling starts at 16 writes in flight. Absent when the kernel has no such control.
        throttle = sys_block / "queue/wbt_lat_usec"
        if throttle.exists():
            throttle.write_text("0")
        for name, value in (queue_settings or {}).items():
            (sys_block / "queue" / name).write_text(str(value))
        yield device
    finally:
        run(["losetup", "-d", device], check=False)
        end = time.monotonic() + STOP_TIMEOUT_S
        while read_text(f"/sys/block/{pathlib.Path(device).name}/loop/backing_file"):
            if time.monotonic() > end:
                raise BenchError(f"{device} is still attached to {path}")
            time.sleep(0.02)


@contextlib.contextmanager
def zram(size_bytes):
    """A zram device of our own with lz4, never one that was there before."""
    control = pathlib.Path("/sys/class/zram-control")
    number = read_text(control / "hot_add")
    if not number:
        raise Missing("the kernel has no zram (or no permission for /sys/class/zram-control)")
    try:
        sys_block = pathlib.Path(f"/sys/block/zram{number}")
        (sys_block / "comp_algorithm").write_text("lz4")
        (sys_block / "disksize").write_text(str(size_bytes))
        yield f"/dev/zram{number}"
    finally:
        remove_zram(number)


def remove_zram(number):
    """Removes a zram device; whoever had it open may need a moment to let go."""
    end = time.monotonic() + STOP_TIMEOUT_S
    while True:
        try:
            pathlib.Path("/sys/class/zram-control/hot_remove").write_text(number)
            return
        except OSError as error:
            if time.monotonic() > end:
                print(f"bench: zram{number} stays: {error}", file=sys.stderr)
                return
            time.sleep(0.1)
