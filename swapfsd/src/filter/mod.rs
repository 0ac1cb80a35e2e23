//! Back ends that wrap a back end: they see every request on its way and hand it on.
//!
//! The habit is nbdkit's: faults are injected in front of any back end by one filter, not in
//! each back end again.

mod delay;
mod fault;

pub use delay::Delay;
pub use fault::Fault;
