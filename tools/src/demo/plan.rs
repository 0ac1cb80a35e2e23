//! How much the demo can move on this machine.

use crate::failure::Failure;
use swapfs_format::size::human;

const MIB: u64 = 1 << 20;
/// Under this, there is nothing to be seen.
const LEAST_BYTES: u64 = 4 * MIB;
/// The volume is more than twice the data: the kernel gives up its slots for pages that were
/// read back when swap is more than half full, and the demo would measure that too.
const VOLUME_FACTOR: u64 = 2;
const VOLUME_SPARE_BYTES: u64 = 32 * MIB;
/// What stays free on the disk.
const DISK_SPARE_BYTES: u64 = 64 * MIB;

/// What the demo does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Pattern to push out and read back.
    pub data_bytes: u64,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Why it is less than was asked for.
    pub lowered: Option<String>,
}

/// Fits `wanted_bytes` to the machine: all of it is in memory at first, and again at the end.
/// `free_bytes` is the room for the image; `None` if it takes none.
///
/// # Errors
/// If what is left is not worth it.
pub fn plan(
    wanted_bytes: u64,
    available_bytes: u64,
    free_bytes: Option<u64>,
) -> Result<Plan, Failure> {
    let memory_bytes = available_bytes / 2 / MIB * MIB;
    let disk_bytes = free_bytes.map_or(u64::MAX, |free| {
        free.saturating_sub(VOLUME_SPARE_BYTES + DISK_SPARE_BYTES) / VOLUME_FACTOR / MIB * MIB
    });
    let data_bytes = wanted_bytes.min(memory_bytes).min(disk_bytes);
    let short_of = if memory_bytes < disk_bytes {
        format!("half of the available memory ({})", human(available_bytes))
    } else {
        format!("what fits into the free space ({})", human(free_bytes.unwrap_or(0)))
    };
    if data_bytes < LEAST_BYTES {
        return Err(Failure::new(
            "demo",
            if wanted_bytes < LEAST_BYTES {
                format!("--megabytes: at least {} are needed", LEAST_BYTES / MIB)
            } else {
                format!("{short_of} is too little: it needs at least {}", human(LEAST_BYTES))
            },
        ));
    }
    let lowered = (data_bytes < wanted_bytes)
        .then(|| format!("{} instead of {}: {short_of}", human(data_bytes), human(wanted_bytes)));
    Ok(Plan { data_bytes, volume_bytes: data_bytes * VOLUME_FACTOR + VOLUME_SPARE_BYTES, lowered })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_machine_gets_what_was_asked_for() {
        let plan = plan(300 * MIB, 8 << 30, Some(80 << 30)).unwrap();
        assert_eq!(plan.data_bytes, 300 * MIB);
        assert_eq!(plan.volume_bytes, 632 * MIB);
        assert_eq!(plan.lowered, None);
    }

    #[test]
    fn little_memory_lowers_it() {
        let plan = plan(300 * MIB, 200 * MIB, Some(80 << 30)).unwrap();
        assert_eq!(plan.data_bytes, 100 * MIB);
        assert_eq!(
            plan.lowered.unwrap(),
            "100 MiB instead of 300 MiB: half of the available memory (200 MiB)"
        );
    }

    #[test]
    fn little_disk_lowers_it_unless_the_image_takes_none() {
        let lowered = plan(300 * MIB, 8 << 30, Some(296 * MIB)).unwrap();
        assert_eq!(lowered.data_bytes, 100 * MIB);
        assert!(lowered.lowered.unwrap().contains("free space (296 MiB)"));
        assert_eq!(plan(300 * MIB, 8 << 30, None).unwrap().data_bytes, 300 * MIB);
    }

    #[test]
    fn too_little_is_refused() {
        assert!(plan(300 * MIB, 4 * MIB, None).unwrap_err().to_string().contains("memory (4 MiB)"));
        assert!(plan(300 * MIB, 8 << 30, Some(0)).is_err());
        let failure = plan(MIB, 8 << 30, None).unwrap_err().to_string();
        assert_eq!(failure, "demo: --megabytes: at least 4 are needed");
    }
}
