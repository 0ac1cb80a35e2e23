//! What keeps the daemon alive and awake while memory is short: promise 3, "no deadlock".
//!
//! Each measure that the machine does not allow is said once, by name, with what is missing, and
//! the daemon goes on: a volume without one of them is better than none.

use crate::sys::{memory, process};
use log::warn;
use serde::Serialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What is in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Protection {
    /// mlockall: the daemon's own pages are never swapped out.
    pub memory_locked: bool,
    /// PR_SET_IO_FLUSHER: its allocations never wait for I/O.
    pub io_flusher: bool,
    /// oom_score_adj -1000: the OOM killer takes others.
    pub oom_protected: bool,
    /// A cgroup with memory.swap.max 0.
    pub swap_free_cgroup: bool,
    /// SCHED_RR: its allocations may use a part of the kernel's memory reserve.
    pub realtime: bool,
}

/// What the names of the daemon's cgroups start with.
const CGROUP_PREFIX: &str = "swapfsd-";

/// A cgroup that was made for the daemon; removed when dropped.
#[derive(Debug)]
pub struct OwnCgroup {
    path: PathBuf,
}

/// Sets what a process does not inherit, in a worker whose supervisor has said what is missing. A
/// `standby` does what it does beforehand as an ordinary task: it can take as long as a take-over
/// may, and would keep others from a processor for that long.
#[must_use]
pub fn protect_worker(realtime: bool, standby: bool) -> Protection {
    let realtime = realtime && process::set_realtime().is_ok();
    if realtime {
        process::plan_realtime();
        if standby {
            drop(process::set_ordinary());
        }
    }
    Protection {
        realtime,
        swap_free_cgroup: matches!(enter_swap_free_cgroup(), Ok(None)),
        io_flusher: process::set_io_flusher().is_ok(),
        oom_protected: fs::write("/proc/self/oom_score_adj", "-1000").is_ok(),
        memory_locked: memory::lock_all_on_fault().is_ok(),
    }
}

/// The cgroup that a supervisor which has died had made: it is this process's to remove now.
#[must_use]
pub fn inherited_cgroup() -> Option<OwnCgroup> {
    let root = cgroup2_root(&fs::read_to_string("/proc/self/mounts").ok()?)?;
    let path = own_cgroup(&root)?;
    let ours = path.file_name()?.to_str()?.starts_with(CGROUP_PREFIX);
    // Only now: one that is dropped is left and removed.
    ours.then(|| OwnCgroup { path })
}

/// Sets everything that is inherited by threads: call before there are any. `realtime=off` leaves
/// that one measure out.
pub fn protect_process(realtime: bool) -> (Protection, Option<OwnCgroup>) {
    let (swap_free_cgroup, cgroup) = match enter_swap_free_cgroup() {
        Ok(cgroup) => (true, cgroup),
        Err(why) => {
            warn!("no swap-free cgroup: {why}");
            (false, None)
        }
    };
    let protection = Protection {
        swap_free_cgroup,
        io_flusher: said(
            process::set_io_flusher(),
            "PR_SET_IO_FLUSHER",
            "it needs CAP_SYS_RESOURCE: under memory pressure an allocation of the daemon could \
             wait for its own swap-outs",
        ),
        oom_protected: said(
            fs::write("/proc/self/oom_score_adj", "-1000"),
            "oom_score_adj -1000",
            "it needs CAP_SYS_RESOURCE: the OOM killer could take the daemon",
        ),
        memory_locked: said(
            memory::lock_all_on_fault(),
            "mlockall",
            "it needs CAP_IPC_LOCK: the daemon could be swapped out to itself",
        ),
        // The bio of a direct write to a file comes from the pool that swap-outs above it use up
        // when memory is at its minimum; only a real-time task gets one then (swapfsd/README.md).
        realtime: realtime
            && said(
                process::set_realtime(),
                "SCHED_RR",
                "it needs CAP_SYS_NICE: when the machine's memory is full, the daemon could wait \
                 for memory that only its own swap-outs free",
            ),
    };
    if protection.realtime {
        process::plan_realtime();
    }
    (protection, cgroup)
}

fn said(outcome: io::Result<()>, what: &str, why: &str) -> bool {
    match outcome {
        Ok(()) => true,
        Err(error) => {
            warn!("{what}: {error}: {why}");
            false
        }
    }
}

/// `Ok(None)` if the cgroup that the daemon is in keeps it from swapping already.
fn enter_swap_free_cgroup() -> Result<Option<OwnCgroup>, String> {
    let root = cgroup2_root(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
        .ok_or("no cgroup v2 hierarchy is mounted")?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "memory") {
        return Err("cgroup v2 has no memory controller here (it is used by version 1)".to_owned());
    }
    if let Some(own) = own_cgroup(&root)
        && fs::read_to_string(own.join("memory.swap.max")).is_ok_and(|max| max.trim() == "0")
    {
        return Ok(None);
    }
    // A service manager owns the cgroup that it started us in, and finds us by it.
    if std::env::var_os("INVOCATION_ID").is_some() && std::env::var_os("NOTIFY_SOCKET").is_some() {
        return Err("started by systemd: set MemorySwapMax=0 in the unit".to_owned());
    }
    let describe = |what: &str, error: io::Error| format!("{what}: {error}");
    fs::write(root.join("cgroup.subtree_control"), "+memory")
        .map_err(|error| describe("cgroup.subtree_control", error))?;
    let path = root.join(format!("{CGROUP_PREFIX}{}", std::process::id()));
    fs::create_dir(&path).map_err(|error| describe(&path.display().to_string(), error))?;
    let cgroup = OwnCgroup { path };
    fs::write(cgroup.path.join("memory.swap.max"), "0")
        .map_err(|error| describe("memory.swap.max", error))?;
    fs::write(cgroup.path.join("cgroup.procs"), "0")
        .map_err(|error| describe("cgroup.procs", error))?;
    Ok(Some(cgroup))
}

fn cgroup2_root(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

fn own_cgroup(root: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(root.join(path))
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // A cgroup can only go when nobody is in it; who has just ended is for a moment.
        if let Some(parent) = self.path.parent() {
            drop(fs::write(parent.join("cgroup.procs"), "0"));
        }
        for _ in 0..100 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found() {
        let mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_root(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2_root("proc /proc proc rw 0 0\n"), None);
    }
}
