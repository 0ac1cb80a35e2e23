"""The servers that hold far memory, from Debian's packages, on loopback, each with its end."""

import contextlib
import os
import random
import socket
import time

from . import host

MASTERS = 3
CLUSTER_SLOTS = 16384
# Below the ports that clients get, so that none of them takes a server's.
PORTS = range(14000, 32000)
CLUSTER_TIMEOUT_S = 60


def free_port():
    """A port that nobody listens at."""
    for _ in range(1000):
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise host.BenchError("no port is free")


def wait_for(what, done, timeout_s=host.READY_TIMEOUT_S):
    """Waits until `done()`."""
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise host.BenchError(f"not within {timeout_s} s: {what}")
        time.sleep(0.05)


def ask(port, *words):
    """Asks a Redis server by redis-cli; an error is answered as text."""
    return host.run(["redis-cli", "-p", port, *words], check=False).strip()


@contextlib.contextmanager
def redis(room, *options):
    """A Redis server without persistence; gives its port."""
    port = free_port()
    place = room / f"redis-{port}"
    place.mkdir()
    command = [host.program("redis-server", ["/usr/bin"]), "--port", port, "--bind", "127.0.0.1",
               "--save", "", "--appendonly", "no", "--dir", place, *options]
    with host.daemon(command, place / "log") as process:
        # It ends at once when it is told so: nothing is to be saved.
        with killed(process):
            wait_for("redis-server", lambda: ask(port, "PING") == "PONG")
            yield port


@contextlib.contextmanager
def killed(process):
    """Kills it at the end: what it holds is not wanted any more."""
    try:
        yield
    finally:
        process.kill()


@contextlib.contextmanager
def redis_cluster(room):
    """Three masters with a replica each; gives the port of one."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(2 * MASTERS):
            bus = free_port()
            port = stack.enter_context(redis(
                room, "--cluster-enabled", "yes", "--cluster-port", bus,
                "--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0"))
            nodes.append((port, bus))
        for index, (port, bus) in enumerate(nodes):
            ask(port, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            if index < MASTERS:
                ask(port, "CLUSTER", "ADDSLOTSRANGE", index * CLUSTER_SLOTS // MASTERS,
                    (index + 1) * CLUSTER_SLOTS // MASTERS - 1)
            ask(nodes[0][0], "CLUSTER", "MEET", "127.0.0.1", port, bus)
        known = f"cluster_known_nodes:{len(nodes)}"
        wait_for("nodes of the cluster", lambda: all(
            known in ask(port, "CLUSTER", "INFO") for port, _ in nodes), CLUSTER_TIMEOUT_S)
        for (master, _), (replica, _) in zip(nodes, nodes[MASTERS:]):
            name = ask(master, "CLUSTER", "MYID")
            wait_for("a replica", lambda: ask(replica, "CLUSTER", "REPLICATE", name) == "OK")
        wait_for("the cluster", lambda: all(
            "cluster_state:ok" in ask(port, "CLUSTER", "INFO") for port, _ in nodes), CLUSTER_TIMEOUT_S)
        wait_for("replicas", lambda: all(
            "state=online" in ask(port, "INFO", "replication") for port, _ in nodes[:MASTERS]),
            CLUSTER_TIMEOUT_S)
        yield nodes[0][0]


@contextlib.contextmanager
def nbdkit(room, size_bytes, *options):
    """nbdkit with memory, at a socket; gives its path."""
    place = room / "nbdkit.sock"
    command = [host.program("nbdkit"), "--foreground", *options, "--unix", place, "memory",
               f"size={size_bytes}"]
    with host.daemon(command, room / "nbdkit.log") as process, killed(process):
        wait_for("nbdkit", lambda: can_connect(place))
        yield place


@contextlib.contextmanager
def qemu_nbd(room, size_bytes):
    """qemu-nbd with a sparse file, at a socket; gives its path."""
    place, disk = room / "qemu-nbd.sock", room / "qemu-nbd.disk"
    disk.touch()
    os.truncate(disk, size_bytes)
    command = [host.program("qemu-nbd"), "--socket", place, "--format=raw", "--persistent",
               "--shared=16", "--discard=unmap", "--cache=writeback", disk]
    try:
        with host.daemon(command, room / "qemu-nbd.log") as process, killed(process):
            wait_for("qemu-nbd", lambda: can_connect(place))
            yield place
    finally:
        disk.unlink(missing_ok=True)


def can_connect(path):
    """Whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        with contextlib.suppress(OSError):
            probe.connect(str(path))
            return True
    return False


@contextlib.contextmanager
def remote_options(kind, room, size_bytes):
    """Starts the server of a `remote-...` kind, with room for that; gives the options of a volume."""
    with contextlib.ExitStack() as stack:
        if kind == "remote-redis":
            port = stack.enter_context(redis(room))
            yield [f"url=redis://127.0.0.1:{port}", f"capacity={size_bytes}"]
        elif kind == "remote-cluster":
            port = stack.enter_context(redis_cluster(room))
            yield [f"url=redis://127.0.0.1:{port}", "cluster=on", f"capacity={size_bytes}"]
        elif kind == "remote-nbd":
            # With more threads, nbdkit 1.32 aborts now and then when a killed worker's connections end.
            path = stack.enter_context(nbdkit(room, size_bytes, "--threads=1"))
            yield [f"url=nbd+unix:///?socket={path}", "layout=log"]
        elif kind == "remote-qemu":
            path = stack.enter_context(qemu_nbd(room, size_bytes))
            yield [f"url=nbd+unix:///?socket={path}", "layout=linear"]
        else:
            raise host.BenchError(f"no kind {kind}")
