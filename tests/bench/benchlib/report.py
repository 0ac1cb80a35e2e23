"""Medians, ratios, and the tables."""

import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys

from . import quiet
from .host import read_text
from .jobs import JOBS


def git_commit():
    """The commit of this checkout, with a mark when files differ from it."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        return subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def cpu_model():
    """The processor's name."""
    for line in read_text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def machine():
    """What the figures depend on besides the code."""
    flags = read_text("/proc/cpuinfo").split("flags", 1)[-1].split("\n", 1)[0].split()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "virtual": "hypervisor" in flags,
        "halt_poll_ns": read_text("/sys/module/haltpoll/parameters/guest_halt_poll_ns", "none"),
        "memory_kib": int(read_text("/proc/meminfo").split()[1]),
        "load_at_start": read_text("/proc/loadavg"),
        "commit": git_commit(),
        "command": shlex.join(sys.argv),
    }


def machine_line(facts):
    """The same as one line."""
    kind = "virtual machine" if facts["virtual"] else "bare metal"
    return (
        f"{facts['time']}, commit {facts['commit']}, kernel {facts['kernel']}, {facts['cpu']}, "
        f"{facts['cpus']} CPUs ({kind}), load at start {facts['load_at_start'].split()[0]}"
    )


def median(samples):
    """The median figure of one cell, None without samples."""
    return statistics.median(sample["figure"] for sample in samples) if samples else None


def spread(samples):
    """Largest less smallest figure, as a part of the median."""
    if len(samples) < 2:
        return None
    figures = [sample["figure"] for sample in samples]
    return (max(figures) - min(figures)) / statistics.median(figures)


def paired_ratio(samples, peer_samples):
    """The median of the ratios within each round: what moved both in one round cancels."""
    ratios = [
        sample["figure"] / peer["figure"]
        for sample, peer in zip(samples, peer_samples, strict=False)
        if peer["figure"] > 0
    ]
    return statistics.median(ratios) if ratios else None


def show(value, job):
    """A figure in its column's precision."""
    if value is None:
        return "-"
    return f"{value:.0f}" if job.unit == "MB/s" or value >= 1000 else f"{value:.1f}"


class Results:
    """Samples by system and job."""

    def __init__(self, systems, jobs=None):
        self.systems = systems
        self.jobs = jobs or JOBS
        self.machine = machine()
        self.skipped = {}
        self.samples = {system.name: {job.name: [] for job in self.jobs} for system in systems}

    def add(self, system, job, sample):
        """One sample."""
        self.samples[system.name][job.name].append(sample)

    def present(self):
        """The systems that have figures."""
        return [system for system in self.systems if any(self.samples[system.name].values())]

    def figures(self):
        """Rows of the main table."""
        rows = [["system", *(f"{job.name} {job.unit}" for job in self.jobs)]]
        for system in self.present():
            cells = self.samples[system.name]
            rows.append([system.name, *(show(median(cells[job.name]), job) for job in self.jobs)])
        return rows

    def spreads(self):
        """Rows of the spread table."""
        rows = [["system", *(job.name for job in self.jobs)]]
        for system in self.present():
            row = [system.name]
            for job in self.jobs:
                value = spread(self.samples[system.name][job.name])
                row.append("-" if value is None else f"{value:.0%}")
            rows.append(row)
        return rows

    def ratios(self, peer_of):
        """Rows of a ratio table; `peer_of` names each system's peer, None leaves it out."""
        rows = [["system / peer", *(job.name for job in self.jobs)]]
        for system in self.present():
            peer = peer_of(system)
            if peer is None or peer not in self.samples or not any(self.samples[peer].values()):
                continue
            row = [f"{system.name} / {peer}"]
            for job in self.jobs:
                value = paired_ratio(
                    self.samples[system.name][job.name], self.samples[peer][job.name]
                )
                row.append("-" if value is None else f"{value:.2f}")
            rows.append(row)
        return rows

    def sections(self):
        """All tables with their titles."""
        engines = {"disk-uring": "disk-sync", "linear-uring": "linear-sync"}
        tables = [
            ("Figures (medians of the rounds)", self.figures()),
            (
                "Ratios to the named peer (us: lower is better; MB/s and k/s: higher is better)",
                self.ratios(lambda system: system.peer),
            ),
            ("Ratios of the engines", self.ratios(lambda system: engines.get(system.name))),
            (
                "Ratios to zram (us: lower is better; MB/s: higher is better)",
                self.ratios(lambda system: "zram" if system.name == "zmem" else None),
            ),
            ("Spread (largest less smallest, of the median)", self.spreads()),
        ]
        return [(title, rows) for title, rows in tables if len(rows) > 1]

    def notes(self):
        """What is not in the tables."""
        shares = [
            sample["foreign"]
            for cells in self.samples.values()
            for samples in cells.values()
            for sample in samples
        ]
        lines = [f"{job.name}: {job.title}, {job.unit}" for job in self.jobs]
        lines += [f"{system.name}: {system.text}" for system in self.present()]
        lines += [f"{name}: skipped: {reason}" for name, reason in self.skipped.items()]
        if shares:
            disturbed = sum(share > quiet.QUIET_SHARE for share in shares)
            lines.append(
                f"{disturbed} of {len(shares)} samples were disturbed (others used more than "
                f"{quiet.QUIET_SHARE:.0%} of a CPU); on average others used "
                f"{statistics.mean(shares):.1%}"
            )
        return lines

    def text(self):
        """For the terminal."""
        parts = [machine_line(self.machine), f"command: {self.machine['command']}"]
        for title, rows in self.sections():
            widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
            parts.append(f"\n{title}")
            for row in rows:
                cells = [row[0].ljust(widths[0])]
                cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
                parts.append("  ".join(cells).rstrip())
        return "\n".join([*parts, "", *self.notes()])

    def markdown(self):
        """To paste into RESULTS.md as it is."""
        parts = [machine_line(self.machine) + ".", f"`{self.machine['command']}`"]
        for title, rows in self.sections():
            lines = [
                "| " + " | ".join(rows[0]) + " |",
                "|---" + "|---:" * (len(rows[0]) - 1) + "|",
                *("| " + " | ".join(row) + " |" for row in rows[1:]),
            ]
            parts += [f"**{title}**", "\n".join(lines)]
        parts.append("\n".join(f"- {note}" for note in self.notes()))
        return "\n\n".join(parts) + "\n"

    def as_json(self):
        """Everything, for a later comparison."""
        return {
            "machine": self.machine,
            "jobs": [vars(job) for job in self.jobs],
            "systems": {
                system.name: {
                    "text": system.text,
                    "peer": system.peer,
                    "median": {
                        job.name: median(self.samples[system.name][job.name]) for job in self.jobs
                    },
                    "samples": self.samples[system.name],
                }
                for system in self.present()
            },
            "skipped": self.skipped,
        }
