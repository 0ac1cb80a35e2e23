//! Stubs: where they say that pages are, and of an NBD server whether the export there is theirs.
//! Nothing is written to servers.

use super::survey::{FORMAT_AGAIN, Problem, ProblemKind, Survey};
use mkswapfs::Elsewhere;
use mkswapfs::export::Export;
use swapfs_format::member::capacity_bytes;
use swapfs_format::remote::{RemoteOptions, RemoteUrl};
use swapfs_format::size;
use swapfs_format::superblock::Superblock;
use swapfsd::image::{SuperblockPair, member_flaw};

/// Says where the pages of `superblock` are, if it is that of a stub; with `thorough`, looks there.
pub(super) fn check(superblock: &Superblock, thorough: bool, survey: &mut Survey) {
    // What is wrong with its options has been said.
    let Some(Ok(options)) = RemoteOptions::of_stub(superblock) else { return };
    if let Some(elsewhere) = Elsewhere::of(superblock, None) {
        survey.notes.push(format!(
            "its pages are at {}: layout {}, {} at most, deadline {} ms",
            elsewhere.url,
            elsewhere.layout,
            size::human(elsewhere.capacity_bytes),
            elsewhere.deadline_ms
        ));
    }
    if !thorough || !matches!(options.url, RemoteUrl::Nbd(_)) {
        return;
    }
    match Export::connect(&options) {
        Ok(export) => {
            let (pair, bytes) = (export.read_superblocks(), export.bytes());
            let flaws = flaws(superblock, &options, pair, bytes);
            survey.problems.extend(flaws.into_iter().map(|(kind, why)| {
                let text = format!("{}: {why}", options.url);
                Problem::beyond_repair(kind, text, FORMAT_AGAIN)
            }));
        }
        Err(error) => {
            survey.server_unasked = true;
            survey.warnings.push(format!("{error}; only the stub was checked"));
        }
    }
}

/// What is wrong on the export of `bytes` bytes that has these superblocks.
fn flaws(
    stub: &Superblock,
    options: &RemoteOptions,
    pair: SuperblockPair,
    bytes: u64,
) -> Vec<(ProblemKind, String)> {
    let differs = |why: String| (ProblemKind::ExportDiffers, why);
    let found = match (pair.primary, pair.backup) {
        (Ok(found), Ok(backup)) if found.volume_uuid == stub.uuid && backup != found => {
            let why = "the backup superblock says something else than the primary one";
            return vec![(ProblemKind::ExportDamaged, why.to_owned())];
        }
        (Ok(found), Err(error)) if found.volume_uuid == stub.uuid => {
            return vec![(ProblemKind::ExportDamaged, format!("backup superblock: {error}"))];
        }
        (Ok(found), _) => found,
        (Err(error), Ok(backup)) if backup.volume_uuid == stub.uuid => {
            return vec![(ProblemKind::ExportDamaged, format!("primary superblock: {error}"))];
        }
        (Err(_), _) => return vec![differs("the export holds no swapfs image".to_owned())],
    };
    if found.volume_uuid != stub.uuid {
        let whose = found.volume_uuid;
        return vec![differs(format!("the export belongs to {whose}, not to this image"))];
    }
    let mut flaws = Vec::new();
    if found.type_name != options.layout.name() {
        let (found, said) = (&found.type_name, options.layout.name());
        flaws.push(format!("the export was formatted as '{found}', and the image says '{said}'"));
    }
    // A volume has a size of its own.
    if stub.is_member() && found.data_bytes != capacity_bytes(stub) {
        flaws.push(format!(
            "its data section has {} bytes, and the image says {}",
            found.data_bytes,
            capacity_bytes(stub)
        ));
    }
    if bytes < found.image_bytes {
        let need = found.image_bytes;
        flaws.push(format!("it was cut off: it has {bytes} bytes, its superblock says {need}"));
    }
    flaws.extend(member_flaw(&found));
    flaws.into_iter().map(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use swapfs_format::geometry::Geometry;
    use swapfs_format::superblock::DecodeError;
    use uuid::Uuid;

    fn stub() -> (Superblock, RemoteOptions) {
        let geometry = Geometry::stub(4 << 20).unwrap();
        let mut stub = Superblock::new("remote", &geometry, Uuid::from_u128(5));
        (stub.volume_uuid, stub.member_order) = (Uuid::from_u128(7), 2);
        stub.options = "url=nbd://a/x,layout=linear".to_owned();
        let options = RemoteOptions::of_stub(&stub).unwrap().unwrap();
        (stub, options)
    }

    fn export() -> Superblock {
        let geometry = Geometry::member(4 << 20, 4096, 4096).unwrap();
        let mut export = Superblock::new("linear", &geometry, Uuid::from_u128(6));
        (export.volume_uuid, export.member_order) = (Uuid::from_u128(5), 1);
        export
    }

    fn said(
        primary: Result<Superblock, DecodeError>,
        backup: Result<Superblock, DecodeError>,
        bytes: u64,
    ) -> String {
        let (stub, options) = stub();
        let pair = SuperblockPair { primary, backup, backup_offset_bytes: 0 };
        let flaws = flaws(&stub, &options, pair, bytes);
        flaws.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn an_export_is_told_from_others() {
        let (good, bytes) = (export(), export().image_bytes);
        assert_eq!(said(Ok(good.clone()), Ok(good.clone()), bytes), "");
        assert!(said(Ok(good.clone()), Ok(good.clone()), bytes - 1).contains("cut off"));
        let bad = || Err(DecodeError::BadMagic);
        assert!(said(bad(), bad(), bytes).contains("holds no swapfs image"));
        assert!(said(bad(), Ok(good.clone()), bytes).contains("primary superblock: no swapfs"));
        assert!(said(Ok(good.clone()), bad(), bytes).contains("backup superblock: no swapfs"));
        let other = Superblock { generation: 2, ..good.clone() };
        assert!(said(Ok(good.clone()), Ok(other), bytes).contains("something else"));
        let other = Superblock { volume_uuid: Uuid::from_u128(9), ..good.clone() };
        assert!(said(Ok(other.clone()), Ok(other), bytes).contains("not to this image"));
        let log = Superblock { type_name: "log".to_owned(), ..good };
        let text = said(Ok(log.clone()), Ok(log), bytes);
        assert!(text.contains("formatted as 'log', and the image says 'linear'"), "{text}");
    }
}
