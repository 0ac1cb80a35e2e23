//! Several back ends, one below the other: hot pages in memory, cold ones on devices.

pub mod policy;
