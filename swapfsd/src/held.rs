//! Memory that outlives the process that serves a volume.
//!
//! What a back end must not lose when its process is killed lies in **regions**: files of a
//! private tmpfs that is never swapped (`noswap`), held open by the supervisor, and mapped by
//! whoever serves. The successor of a killed worker finds in them, at some other address, what
//! its predecessor left: whatever was stored by atomic stores, in whatever state the kill found
//! it. Without a supervisor the same back ends run on private memory.

use crate::sys::memory::Mapping;
use std::fs::File;
use std::io;

/// Regions that a back end has for itself.
pub const BACKEND_REGIONS: usize = 4;

/// Where a back end's memory comes from.
#[derive(Debug, Default)]
pub struct Held {
    regions: Option<[File; BACKEND_REGIONS]>,
    adopted: bool,
}

impl Held {
    /// Private memory, which ends with the process.
    #[must_use]
    pub fn private() -> Held {
        Held::default()
    }

    /// Memory of the supervisor's. `adopted`: a predecessor has used it, and may still be using
    /// it: nothing may be changed in it before [`crate::backend::Backend::activate`].
    #[must_use]
    pub fn regions(regions: [File; BACKEND_REGIONS], adopted: bool) -> Held {
        Held { regions: Some(regions), adopted }
    }

    /// The regions hold what a predecessor left.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// The memory outlives this process.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.regions.is_some()
    }

    /// Maps `len` bytes of region `index`, nothing of it populated: zeros, or what a predecessor
    /// left there.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub fn map(&self, index: usize, len: usize) -> io::Result<Mapping> {
        match &self.regions {
            Some(regions) => Mapping::shared(regions[index].try_clone()?, len),
            None => Mapping::new(len, false),
        }
    }

    /// As [`Held::map`], with every page present.
    ///
    /// # Errors
    /// What mmap(2) and madvise(2) answer; no memory, first of all.
    pub fn map_populated(&self, index: usize, len: usize) -> io::Result<Mapping> {
        let mapping = self.map(index, len)?;
        mapping.populate_range(0, len)?;
        Ok(mapping)
    }
}
