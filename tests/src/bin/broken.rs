//! A program that says it could serve a swapfs volume, and can't: for tests of upgrades. What is
//! wrong with it is in its file's name.
//!
//! * `broken-version`: keeps pages in another way.
//! * `broken-takeover`: is ready, and ends when it should serve.
//! * `broken-hang`: is ready, and does nothing when it should serve.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

use std::time::Duration;
use swapfsd::control::HANDOVER_VERSION;
use swapfsd::supervisor::link::{Kind, Link};
use swapfsd::sys::spawn;

fn main() {
    let link = Link::from_descriptor(spawn::inherited(spawn::LINK_DESCRIPTOR).unwrap());
    let role = link.next().unwrap().unwrap().kind();
    assert_eq!(role, Some(Kind::StandBy));
    let program = std::fs::read_link("/proc/self/exe").unwrap();
    let program = program.file_name().unwrap().to_str().unwrap().to_owned();
    let version = HANDOVER_VERSION + u32::from(program == "broken-version");
    link.say(Kind::Ready, &version.to_le_bytes()).unwrap();
    while let Some(packet) = link.next().unwrap() {
        if packet.kind() == Some(Kind::TakeOver) && program == "broken-takeover" {
            std::process::exit(3);
        }
    }
    std::thread::sleep(Duration::from_secs(1));
}
