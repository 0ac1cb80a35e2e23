//! Tests with servers that lie, and with real ones.

mod lying;
mod real;
mod server;

use super::{NbdDevice, NbdSettings};
use std::time::Duration;
use swapfs_format::PAGE_LEN;
use swapfs_format::geometry::Geometry;
use swapfs_format::remote::NbdPlace;
use swapfs_format::superblock::Superblock;
use uuid::Uuid;

/// A buffer as the back ends have them: pages, aligned.
#[repr(C, align(4096))]
#[derive(Clone)]
pub(super) struct Pages<const N: usize>(pub(super) [u8; N]);

pub(super) fn settings(place: NbdPlace, deadline_ms: u64) -> NbdSettings {
    let deadline = Duration::from_millis(deadline_ms);
    NbdSettings { place, export: String::new(), connections: None, deadline, stub: None }
}

pub(super) fn number(device: &NbdDevice, wanted: &str) -> u64 {
    let mut found = None;
    device.statistics(&mut |name, value| {
        if name == wanted {
            found = Some(value);
        }
    });
    found.unwrap()
}

/// Numbers that look random, the same in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % limit
    }
}

/// The superblock of an export that was formatted for `stub`.
pub(super) fn superblock(stub: Uuid) -> [u8; PAGE_LEN] {
    let geometry = Geometry::in_place(512 << 10, 4096).unwrap();
    let mut superblock = Superblock::new("linear", &geometry, Uuid::from_u128(99));
    superblock.volume_uuid = stub;
    superblock.encode().unwrap()
}
