//! What the end-to-end tests and the measurements share.
// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

pub mod conformance;
pub mod formatted;
pub mod killed;
pub mod measured;
pub mod memory;
pub mod mounted;
pub mod pattern;
pub mod remote;
pub mod rng;
pub mod servers;
pub mod tiers;
pub mod workload;
