//! The tiers in `stats.json`, without an allocation.

use crate::volume::Volume;
use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};

/// Adds `tiers` and `evacuation`, where there are tiers.
///
/// # Errors
/// What the serializer answers.
pub(super) fn serialize_into<M: SerializeMap>(
    map: &mut M,
    volume: &Volume,
) -> Result<(), M::Error> {
    let mut has_tiers = false;
    volume.tiers(&mut |_| has_tiers = true);
    if has_tiers {
        map.serialize_entry("tiers", &Tiers(volume))?;
        map.serialize_entry("evacuation", &volume.evacuation())?;
    }
    Ok(())
}

struct Tiers<'a>(&'a Volume);

impl Serialize for Tiers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        let mut outcome = Ok(());
        self.0.tiers(&mut |tier| {
            if outcome.is_ok() {
                outcome = seq.serialize_element(tier);
            }
        });
        outcome?;
        seq.end()
    }
}

#[cfg(test)]
mod tests;
