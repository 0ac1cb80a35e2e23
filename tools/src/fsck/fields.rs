//! What a superblock that decodes can still say wrongly: everything that needs the types.

use super::members;
use super::survey::{FORMAT_AGAIN, Problem, ProblemKind};
use swapfs_format::superblock::Superblock;
use swapfs_format::types::{self, TypeSpec};
use swapfsd::backend::log::scan::LogArea;

/// Checks type, options, data section and members.
pub(super) fn check(superblock: &Superblock, problems: &mut Vec<Problem>, notes: &mut Vec<String>) {
    if superblock.is_member() {
        notes.push(format!(
            "it is member {} of the tier volume {}",
            superblock.member_order, superblock.volume_uuid
        ));
        members::check_own(superblock, problems);
        return;
    }
    let Some(spec) = superblock.type_spec() else {
        problems.push(Problem::beyond_repair(
            ProblemKind::UnknownType,
            format_args!(
                "unknown type '{}': this program knows {}",
                superblock.type_name,
                types::known_names()
            ),
            "use a newer swapfs, or format it again with mkswapfs -f",
        ));
        return;
    };
    if let Err(error) = spec.parse_options(&superblock.options) {
        problems.push(Problem::beyond_repair(
            ProblemKind::BadOption,
            error,
            format_args!("use the swapfs that formatted it, or {FORMAT_AGAIN}"),
        ));
    }
    if let Some(why) = wrong_data_section(superblock, spec) {
        problems.push(Problem::beyond_repair(ProblemKind::WrongDataSection, why, FORMAT_AGAIN));
    }
    let erase_block_bytes = u64::from(superblock.erase_block_bytes);
    if !superblock.data_offset_bytes.is_multiple_of(erase_block_bytes) {
        notes.push(format!(
            "the data section starts at byte {}, in the middle of an erase block of \
             {erase_block_bytes} bytes: right, but slower",
            superblock.data_offset_bytes
        ));
    }
    if let Some(why) = members::wrong_table(superblock, spec) {
        problems.push(Problem::beyond_repair(ProblemKind::BadMembers, why, FORMAT_AGAIN));
    }
}

fn wrong_data_section(superblock: &Superblock, spec: &TypeSpec) -> Option<String> {
    if spec.ghost != superblock.is_ghost() {
        let has = if superblock.is_ghost() { "no data section" } else { "a data section" };
        return Some(format!("the image has {has}: type '{}' does not go with that", spec.name));
    }
    if spec.name == types::LOG.name {
        return wrong_log_area(superblock);
    }
    let too_small = superblock.data_bytes < superblock.volume_bytes();
    (spec.name == types::LINEAR.name && too_small).then(|| {
        format!(
            "the data section has {} bytes, and the volume {}",
            superblock.data_bytes,
            superblock.volume_bytes()
        )
    })
}

fn wrong_log_area(superblock: &Superblock) -> Option<String> {
    if let Err(why) = LogArea::of(superblock) {
        return Some(why);
    }
    let (data_bytes, segment_bytes) = (superblock.data_bytes, superblock.erase_block_bytes);
    (!data_bytes.is_multiple_of(u64::from(segment_bytes))).then(|| {
        format!(
            "the data section has {data_bytes} bytes: no multiple of the segment's {segment_bytes}"
        )
    })
}
