//! One program, several names: what it does depends on the name that it is called by.

use crate::{cli, fsck, mount};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Swapfs,
    Daemon,
    Formatter,
    Checker,
    Mounter,
}

/// Runs what the program was called as; a name that is none of ours counts as `own_name`.
pub fn main(own_name: &str) -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let called_as = arguments.first().cloned().unwrap_or_else(|| OsString::from(own_name));
    let role = role(&called_as).or_else(|| role(OsStr::new(own_name))).unwrap_or(Role::Swapfs);
    if arguments.is_empty() {
        arguments.push(OsString::from(own_name));
    }
    match role {
        Role::Swapfs => cli::main(arguments),
        Role::Daemon => swapfsd::daemon::main(arguments),
        Role::Formatter => mkswapfs::main(arguments),
        Role::Checker => fsck::main(arguments),
        Role::Mounter => mount::main(arguments.into_iter().skip(1)),
    }
}

/// The role of a name; the file's name counts, not the directory.
fn role(called_as: &OsStr) -> Option<Role> {
    match Path::new(called_as).file_name()?.to_str()? {
        "swapfs" => Some(Role::Swapfs),
        // Its processes have names of their own, such as `swapfsd-worker`.
        name if name.starts_with("swapfsd") => Some(Role::Daemon),
        "mkswapfs" | "mkfs.swapfs" => Some(Role::Formatter),
        "fsck.swapfs" | "fsck-swapfs" => Some(Role::Checker),
        "mount.swapfs" | "mount-swapfs" => Some(Role::Mounter),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_directories() {
        assert_eq!(role(OsStr::new("/sbin/mount.swapfs")), Some(Role::Mounter));
        assert_eq!(role(OsStr::new("fsck-swapfs")), Some(Role::Checker));
        assert_eq!(role(OsStr::new("swapfsd")), Some(Role::Daemon));
        assert_eq!(role(OsStr::new("swapfsd-worker")), Some(Role::Daemon));
        assert_eq!(role(OsStr::new("../mkswapfs")), Some(Role::Formatter));
        assert_eq!(role(OsStr::new("target/debug/swapfs")), Some(Role::Swapfs));
        assert_eq!(role(OsStr::new("exe")), None);
        assert_eq!(role(OsStr::new("")), None);
    }
}
