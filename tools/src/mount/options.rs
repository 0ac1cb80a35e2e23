//! Which of the options of mount(8) are swapfs's own: the rest is fstab's, systemd's, libmount's
//! or the kernel's business and says nothing to the daemon.

use swapfs_format::types;

/// Options that every file system is given, and that mean nothing to a swap volume.
const GENERIC: &[&str] = &[
    "rw",
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "_netdev",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "async",
    "sync",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
    "symfollow",
    "nosymfollow",
];
/// The same, with something behind.
const GENERIC_PREFIXES: &[&str] = &["x-", "X-", "comment=", "user=", "uhelper=", "helper="];

/// What of `text` goes to the daemon.
///
/// `sloppy` (mount's `-s`) drops options that no type of volume has, instead of leaving it to the
/// daemon to refuse them.
///
/// # Errors
/// The reason why an option is impossible here.
pub fn filter(text: &str, sloppy: bool) -> Result<String, String> {
    let mut kept: Vec<&str> = Vec::new();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => {
                return Err("option 'ro': a swap volume that cannot be written is of no use: \
                            mount it read-write"
                    .to_owned());
            }
            "remount" | "bind" | "rbind" | "move" => {
                return Err(format!(
                    "option '{option}': a mounted volume cannot be changed: unmount it, and \
                     mount it again with other options"
                ));
            }
            _ if is_generic(option) => {}
            _ if sloppy && !is_ours(option) => {}
            _ => kept.push(option),
        }
    }
    Ok(kept.join(","))
}

fn is_generic(option: &str) -> bool {
    GENERIC.contains(&option) || GENERIC_PREFIXES.iter().any(|prefix| option.starts_with(prefix))
}

/// Some type of volume has that option.
fn is_ours(option: &str) -> bool {
    let key = option.split_once('=').map_or(option, |(key, _)| key);
    types::TYPES.iter().any(|spec| spec.option(key).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_options_go_to_the_daemon() {
        assert_eq!(
            filter("rw,noauto,engine=sync,x-systemd.automount", false),
            Ok("engine=sync".into())
        );
        assert_eq!(
            filter("defaults,_netdev,nofail,threads=2,comment=me,checksum=off,user=joe", false),
            Ok("threads=2,checksum=off".into())
        );
        assert_eq!(filter("", false), Ok(String::new()));
        assert_eq!(filter("rw,,nosuid,nodev,noexec,relatime", false), Ok(String::new()));
    }

    #[test]
    fn unknown_options_are_the_daemons_to_refuse_unless_sloppy() {
        assert_eq!(filter("colour=red,engine=sync", false), Ok("colour=red,engine=sync".into()));
        assert_eq!(filter("colour=red,engine=sync", true), Ok("engine=sync".into()));
    }

    #[test]
    fn what_is_impossible_has_a_reason() {
        assert!(filter("ro", false).unwrap_err().contains("read-write"));
        assert!(filter("engine=sync,ro", true).is_err());
        assert!(filter("remount,engine=sync", false).unwrap_err().contains("'remount'"));
    }
}
