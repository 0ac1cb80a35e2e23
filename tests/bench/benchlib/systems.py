"""The systems under test: each a context manager that gives fio's target."""

import contextlib
import dataclasses
import functools
import re

from . import host
from .host import Missing, daemon, loop, program, run, unmounting, wait_served, zram

# Room on the medium for the superblocks and whatever else stands in front of the slots.
IMAGE_SLACK_BYTES = 16 << 20


@dataclasses.dataclass
class Context:
    """What bringing a system up needs to know."""

    scratch: object
    disk_directory: object
    size_bytes: int
    bin_directories: list
    threads: str
    swapfsd_options: list
    queue_settings: dict


@dataclasses.dataclass(frozen=True)
class System:
    """One column: `up(context)` gives the path that fio measures."""

    name: str
    text: str
    up: object
    data: str = "random"
    peer: str = "floor"
    # False: leave it down while others are measured, because it changes the whole machine.
    beside_others: bool = True


@contextlib.contextmanager
def served(context, name, command, mount_point, target, env=None):
    """A FUSE daemon and a loop device on its file."""
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(daemon(command, context.scratch / f"{name}.log", env))
        stack.enter_context(unmounting(mount_point))
        wait_served(process, target, context.size_bytes)
        yield stack.enter_context(loop(target, context.queue_settings))


def directory(context, name):
    """An empty mount point."""
    path = context.scratch / name
    path.mkdir(exist_ok=True)
    return path


@contextlib.contextmanager
def floor(context, name, arguments=(), env=None):
    """The no-op daemon."""
    mount_point = directory(context, name)
    command = [
        program("floor", context.bin_directories),
        f"--size={context.size_bytes}",
        *arguments,
        mount_point,
    ]
    with served(context, name, command, mount_point, mount_point / "swapfile", env) as device:
        yield device


@contextlib.contextmanager
def swapfs(context, name, kind, options, medium):
    """swapfsd on an image; `medium` is a file on disk, a zram device, or a ghost image."""
    mkswapfs = program("mkswapfs", context.bin_directories)
    swapfsd = program("swapfsd", context.bin_directories)
    with contextlib.ExitStack() as stack:
        image_bytes = context.size_bytes + IMAGE_SLACK_BYTES
        if medium == "zram":
            # A block device gives its own size.
            image = stack.enter_context(zram(image_bytes))
            size = []
        else:
            parent = context.disk_directory if medium == "disk" else context.scratch
            image = parent / f"{name}.img"
            stack.callback(functools.partial(image.unlink, missing_ok=True))
            size = ["-s", str(image_bytes if medium == "disk" else context.size_bytes)]
        run([mkswapfs, "-f", "-t", kind, *size, image], timeout_s=300)
        if context.threads != "auto":
            options = [*options, f"threads={context.threads}"]
        options = ",".join([*options, *context.swapfsd_options])
        mount_point = directory(context, name)
        command = [
            swapfsd,
            *(["-o", options] if options else []),
            "--foreground",
            image,
            mount_point,
        ]
        yield stack.enter_context(
            served(context, name, command, mount_point, mount_point / "swapfile")
        )


@contextlib.contextmanager
def disk_file(context, name, through_loop):
    """The file system's own file: what the disk rows of swapfs start from."""
    path = context.disk_directory / f"{name}.img"
    with contextlib.ExitStack() as stack:
        stack.callback(functools.partial(path.unlink, missing_ok=True))
        run(["fallocate", "-l", str(context.size_bytes), path])
        yield stack.enter_context(loop(path, context.queue_settings)) if through_loop else path


@contextlib.contextmanager
def zram_device(context):
    """The kernel's compressed RAM disk, no loop."""
    with zram(context.size_bytes) as device:
        yield device


@contextlib.contextmanager
def nbdfuse(context):
    """nbdkit's memory plug-in behind libnbd's FUSE file."""
    mount_point = directory(context, "nbdfuse")
    # nbdkit belongs to nbdfuse this way, and ends with it.
    command = [
        program("nbdfuse"),
        f"{mount_point}/swapfile",
        "--command",
        program("nbdkit"),
        "-s",
        "--exit-with-parent",
        "memory",
        str(context.size_bytes),
    ]
    target = mount_point / "swapfile"
    with served(context, "nbdfuse", command, mount_point, target) as device:
        yield device


@contextlib.contextmanager
def qemu_storage_daemon(context):
    """QEMU's FUSE export of a device that does nothing: it is mounted over a plain file."""
    target = context.scratch / "qsd-swapfile"
    target.touch()
    command = [
        program("qemu-storage-daemon"),
        "--blockdev",
        f"driver=null-co,node-name=null,size={context.size_bytes}",
        "--export",
        f"type=fuse,id=export,node-name=null,mountpoint={target},writable=on",
    ]
    with served(context, "qsd", command, target, target) as device:
        yield device


def swapfs_system(name, text, kind, options, medium, peer="floor"):
    """A System for swapfsd."""
    data = "zero" if medium == "zram" else "sixty" if kind == "zmem" else "random"
    up = functools.partial(swapfs, name=name, kind=kind, options=options, medium=medium)
    return System(name, text, up, data, peer)


def floor_system(name):
    """`floor`, `floor-t4`, `floor-t4-clone`: the settings are in the name."""
    found = re.fullmatch(r"floor(?:-t(\d+))?(-clone)?", name)
    if found is None:
        return None
    arguments = [f"--threads={found[1]}"] if found[1] else []
    arguments += ["--clone-fd"] if found[2] else []
    text = f"no-op fuser daemon in RAM, {' '.join(arguments) or 'default settings'}"

    def up(context):
        if not found[1] and context.threads != "auto":
            return floor(context, name, [*arguments, f"--threads={context.threads}"])
        return floor(context, name, arguments)

    return System(name, text, up, peer=None if name == "floor" else "floor")


def known():
    """All systems of the table, in its order."""
    on_zram = "image on a zram device, zero pages: storage is next to free"
    on_disk = "image file on ext4"
    systems = [
        floor_system("floor"),
        swapfs_system("ram", "swapfsd, ram back end (Volume and trait call)", "ram", [], "ghost"),
    ]
    for engine in ("sync", "uring"):
        for suffix, checksum in (("", "on"), ("-nosum", "off")):
            systems.append(
                swapfs_system(
                    f"linear-{engine}{suffix}",
                    f"swapfsd linear, engine={engine}, checksum={checksum}; {on_zram}",
                    "linear",
                    [f"engine={engine}", f"checksum={checksum}"],
                    "zram",
                )
            )
    systems += [
        System("nbdfuse", "nbdfuse + nbdkit memory", nbdfuse),
        System("qsd", "qemu-storage-daemon, FUSE export, null-co", qemu_storage_daemon),
        System("zram", "zram device lz4, no loop; pages 60 % compressible", zram_device, "sixty"),
        swapfs_system(
            "zmem",
            "swapfsd zmem, algo=lz4; pages 60 % compressible",
            "zmem",
            ["limit=4G"],
            "ghost",
        ),
    ]
    for engine in ("sync", "uring"):
        systems.append(
            swapfs_system(
                f"disk-{engine}",
                f"swapfsd linear, engine={engine}, checksum=on; {on_disk}",
                "linear",
                [f"engine={engine}", "checksum=on"],
                "disk",
                "disk-loop",
            )
        )
    systems += [
        System(
            "disk-loop",
            "loop device directly on a file on ext4, no FUSE",
            functools.partial(disk_file, name="disk-loop", through_loop=True),
            peer="disk-raw",
        ),
        System(
            "disk-raw",
            "the file on ext4 itself, O_DIRECT, no loop",
            functools.partial(disk_file, name="disk-raw", through_loop=False),
            peer=None,
        ),
    ]
    return systems


def supervisor_cost():
    """What the supervisor costs while nobody dies: `--only` names them."""
    systems = []
    for kind, medium, option in (
        ("zmem", "ghost", "limit=4G"),
        ("linear", "zram", "engine=sync"),
        ("ram", "ghost", "threads=2"),
    ):
        for suffix, switch, peer in (("alone", "off", None), ("guarded", "on", f"{kind}-alone")):
            text = f"swapfsd {kind}, supervisor={switch}"
            options = [option, f"supervisor={switch}"]
            systems.append(
                swapfs_system(f"{kind}-{suffix}", text, kind, options, medium, peer)
            )
    return systems


def transports():
    """The two ways to the daemon, side by side: `--only` names them."""
    systems = []
    for transport in ("fuse", "uring"):
        floor_name = f"floor-{transport}"
        arguments = ["--rings"] if transport == "uring" else ["--sched=rr:1"]
        up = functools.partial(floor, name=floor_name, arguments=arguments)
        text = f"no-op daemon in RAM, transport {transport}"
        systems.append(System(floor_name, text, up, peer="zram" if transport == "uring" else None))
        for kind, medium, option in (
            ("ram", "ghost", []),
            ("zmem", "ghost", ["limit=4G"]),
            ("linear", "zram", ["engine=sync"]),
            ("disk", "disk", ["engine=uring"]),
        ):
            name = f"{kind}-{transport}"
            text = f"swapfsd {kind}, transport={transport}"
            options = [*option, f"transport={transport}"]
            type_name = "linear" if kind == "disk" else kind
            systems.append(swapfs_system(name, text, type_name, options, medium, floor_name))
    return systems


def select(names):
    """The systems of `--only`, in the order given; all of the table without it."""
    if not names:
        return known()
    systems = {system.name: system for system in known() + supervisor_cost() + transports()}
    chosen = []
    for name in names:
        system = systems.get(name) or floor_system(name)
        if system is None:
            raise host.BenchError(
                f"--only: no system '{name}': there are {', '.join(systems)}, "
                "and floor-tN, floor-tN-clone"
            )
        chosen.append(system)
    return chosen


__all__ = ["Context", "Missing", "System", "floor", "known", "select"]
