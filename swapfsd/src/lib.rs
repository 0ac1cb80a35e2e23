//! The swapfs daemon: volumes, back ends, filters, and the FUSE adapter.
//!
//! The way of a page, from the kernel inwards:
//!
//! ```text
//! loop device -> MNT/swapfile -> fuse::Adapter -> volume::Volume -> [filter] -> backend
//! ```
//!
//! Everything below [`fuse`] runs without FUSE: tests, benchmarks and tools drive
//! [`volume::Volume`] directly. `swapfsd/README.md` is the architecture page.

pub mod admin;
pub mod awake;
pub mod backend;
pub mod buffer;
pub mod codec;
pub mod control;
pub mod crash;
pub mod daemon;
pub mod error;
pub mod filter;
pub mod fuse;
pub mod held;
pub mod image;
pub mod logging;
pub mod members;
pub mod overfull;
pub mod protect;
pub mod remote;
pub mod reserve;
pub mod seat;
pub mod stats;
pub mod supervisor;
pub mod sync;
pub mod sys;
pub mod trace;
pub mod volume;
