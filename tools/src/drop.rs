//! `swapfs drop`: the failsafe. All pages of a volume are forgotten, which takes no time; the
//! daemon refuses while the volume is swap.

use crate::failure::Failure;
use crate::tier::Served;
use crate::volumes::Volume;
use std::io::{self, BufRead, IsTerminal, Write};
use swapfs_format::size::human;
use swapfsd::admin::Request;

/// Forgets all pages of `volume`. Unless `sure`, the person is asked.
///
/// # Errors
/// If the volume is in use as swap, there is nobody to ask, the person says no, or the daemon
/// refuses.
pub fn forget(volume: &Volume, sure: bool) -> Result<String, Failure> {
    check_unused(volume)?;
    let served = Served::of(volume)?;
    let pages: u64 = served.stats.tiers.iter().map(|tier| tier.pages).sum();
    let what = format!("{pages} pages ({})", human(pages * swapfs_format::PAGE_BYTES));
    if !sure {
        let question = format!("{}: forget all {what}, for good? [y/N] ", served.name);
        agreed(&question, &served.name)?;
    }
    served.ask(&Request::Drop)?;
    Ok(format!("{}: forgot {what}: it is empty", served.name))
}

/// The daemon looks too: this is to say it before anybody is asked.
fn check_unused(volume: &Volume) -> Result<(), Failure> {
    match volume.swap_areas().next() {
        None => Ok(()),
        Some(area) => Err(Failure::new(
            volume.name().display(),
            format_args!(
                "{} is swap on it, and the pages there would be lost: take it out of use first, \
                 with 'swapoff {}' ('swapfs down' does that and unmounts: a volume of this type \
                 is empty then)",
                area.path.display(),
                area.path.display()
            ),
        )),
    }
}

fn agreed(question: &str, name: &str) -> Result<(), Failure> {
    let input = io::stdin();
    if !input.is_terminal() {
        return Err(Failure::new(
            name,
            "nobody is there to be asked whether all pages are to be forgotten: if they are, say \
             --yes",
        ));
    }
    eprint!("{question}");
    // A question that is not shown gets no yes.
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = input.lock().read_line(&mut answer);
    match read {
        Ok(_) if is_yes(&answer) => Ok(()),
        Ok(_) => Err(Failure::new(name, "nothing was forgotten, as you say")),
        Err(error) => Err(Failure::os("standard input", "read", &error)),
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::swaps::SwapArea;
    use crate::volumes::Device;

    #[test]
    fn only_a_yes_is_one() {
        assert!(is_yes("y\n") && is_yes(" Yes \n"));
        assert!(!is_yes("") && !is_yes("\n") && !is_yes("yellow\n"));
    }

    #[test]
    fn a_volume_that_is_swap_is_refused_before_anybody_is_asked() {
        let swap = SwapArea {
            path: "/dev/loop1".into(),
            size_bytes: 1 << 30,
            used_bytes: 4096,
            priority: 5,
        };
        let mut volume = Volume {
            image: Some("/img/t".into()),
            mount: "/run/swapfs/u1".into(),
            devices: vec![Device {
                path: "/dev/loop1".into(),
                backing: "/run/swapfs/u1/swapfile".into(),
                swap: Some(swap),
            }],
        };
        let why = forget(&volume, true).unwrap_err().to_string();
        assert!(why.contains("'swapoff /dev/loop1'"), "{why}");
        volume.devices.clear();
        assert_eq!(check_unused(&volume), Ok(()));
    }
}
