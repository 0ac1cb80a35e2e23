//! Looking at an image: which superblock is believed, and what is wrong. Nothing is written here.

use super::log::LogReport;
use super::{fields, log, members, remote};
use crate::failure::Failure;
use serde::Serialize;
use std::cmp::Reverse;
use std::fmt;
use swapfs_format::superblock::{
    DecodeError, KNOWN_READ_ONLY_COMPATIBLE, MAGIC, PRIMARY_OFFSET_BYTES, Superblock, layout,
};
use swapfs_format::swap_header::{SIGNATURE_OFFSET, SwapHeader};
use swapfs_format::{PAGE_BYTES, PAGE_LEN, size, types};
use swapfsd::backend::log::scan::LogArea;
use swapfsd::image::Image;
use swapfsd::sys::file::read_all_at;

/// What kind of problem, in words that scripts can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The primary superblock does not check.
    PrimaryBad,
    /// The backup superblock does not check.
    BackupBad,
    /// Neither does.
    BothBad,
    /// Both check and say different things.
    CopiesDiffer,
    /// Another program's data stands where the primary superblock was.
    Overwritten,
    /// The image has fewer bytes than its superblock says.
    Truncated,
    /// Features that this program may not write to.
    UnknownFeatures,
    /// A type that this program does not know.
    UnknownType,
    /// An option that the type does not have, or a value that it does not take.
    BadOption,
    /// The data section does not go with the type.
    WrongDataSection,
    /// A member table that does not go with the type, or with itself.
    BadMembers,
    /// A member's superblock says otherwise than the volume's.
    MemberDiffers,
    /// The primary superblock of a member does not check, and its backup does.
    MemberDamaged,
    /// The export that a stub stands for is not its own, or does not go with it.
    ExportDiffers,
    /// A superblock of the export that a stub stands for does not check.
    ExportDamaged,
    /// Page 0 of the volume is no swap header that the kernel would take.
    BadSwapHeader,
    /// An anchor of the log is damaged or missing.
    LogAnchor,
    /// The anchor speaks of a clean stop, and the log has gone on since.
    LogOutdated,
    /// The checkpoint of a clean stop does not match the log.
    LogCheckpoint,
    /// Header or records of a part of the log are damaged.
    LogSummary,
    /// A part of the log stands where another one belongs.
    LogMisplaced,
    /// Parts of the log are not in order, or there twice.
    LogSequence,
    /// Objects of the log lie over each other.
    LogOverlap,
    /// An object that a slot needs has a wrong checksum.
    LogObject,
    /// A record of the log says what can't be.
    LogRecord,
    /// A part of the log of a version or kind that this program does not know.
    LogUnknown,
    /// A segment of the log can't be read.
    LogUnreadable,
}

impl ProblemKind {
    /// There can be several of the kind in one image.
    pub(super) fn is_of_the_log(self) -> bool {
        use ProblemKind as Kind;
        matches!(
            self,
            Kind::LogAnchor
                | Kind::LogOutdated
                | Kind::LogCheckpoint
                | Kind::LogSummary
                | Kind::LogMisplaced
                | Kind::LogSequence
                | Kind::LogOverlap
                | Kind::LogObject
                | Kind::LogRecord
                | Kind::LogUnknown
                | Kind::LogUnreadable
        )
    }
}

/// A page that ends a problem when it is written.
#[derive(Debug, Clone)]
pub struct Repair {
    /// What is done, behind "to" and before a question mark.
    pub action: &'static str,
    /// Where it goes in the image.
    pub offset_bytes: u64,
    /// What goes there.
    pub page: Box<[u8; PAGE_LEN]>,
    /// Something that may still be dug out by hand is gone then.
    pub loses: bool,
}

/// Something that is wrong.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Its kind.
    pub kind: ProblemKind,
    /// What and why.
    pub text: String,
    /// How it ends; where there is no such way, `advice` says what else to do.
    pub repair: Option<Repair>,
    /// What to do about it by hand.
    pub advice: String,
}

impl Problem {
    /// One that no write of a page ends.
    pub(super) fn beyond_repair(
        kind: ProblemKind,
        text: impl fmt::Display,
        advice: impl fmt::Display,
    ) -> Problem {
        Problem { kind, text: text.to_string(), repair: None, advice: advice.to_string() }
    }
}

/// Everything that a look at an image shows.
#[derive(Debug, Default)]
pub struct Survey {
    /// The superblock that is believed; `None` if neither copy can be.
    pub superblock: Option<Superblock>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What is unusual, and right.
    pub notes: Vec<String>,
    /// What may keep a volume from being mounted, though its own image is right: members that were
    /// not found.
    pub warnings: Vec<String>,
    /// The server that a stub names did not answer, so what is there was not looked at.
    pub server_unasked: bool,
    /// Of type `log`: what it holds.
    pub log: Option<LogReport>,
}

/// The advice where only a new format helps.
pub(super) const FORMAT_AGAIN: &str =
    "format it again with mkswapfs -f (a volume that is not swapped to holds nothing of value)";

/// Looks at an image that is open for oneself; with `thorough`, at all that its log holds, and at the
/// export that a stub stands for.
///
/// # Errors
/// If it is no swapfs volume, or one of a newer program: then nothing can be said about it.
pub fn survey(image: &Image, thorough: bool) -> Result<Survey, Failure> {
    let copies = Copies::read(image);
    copies.refuse_newer(image)?;
    let mut survey = Survey::default();
    copies.believe(image, &mut survey)?;
    let Some(superblock) = survey.superblock.clone() else {
        return Ok(survey);
    };
    sizes(image, &superblock, &mut survey);
    fields::check(&superblock, &mut survey.problems, &mut survey.notes);
    if superblock.type_spec().is_some_and(|spec| spec.has_members) && !superblock.is_member() {
        members::check_images(&superblock, &mut survey.problems, &mut survey.warnings);
    }
    remote::check(&superblock, thorough, &mut survey);
    // A member has neither swap header nor parts of a log.
    let whole = image.bytes() >= superblock.image_bytes && !superblock.is_member();
    if whole && superblock.type_name == types::LINEAR.name && !superblock.is_ghost() {
        swap_header(image, &superblock, &mut survey)?;
    }
    if whole && superblock.type_name == types::LOG.name && LogArea::of(&superblock).is_ok() {
        let Survey { problems, notes, .. } = &mut survey;
        survey.log = Some(log::check(image, &superblock, thorough, problems, notes)?);
    }
    forbid_repairs_of_newer(&superblock, &mut survey);
    // From the end of the image to its start, as a format writes it: so a good primary superblock
    // says that the rest is there, after a crash between two repairs as well.
    survey.problems.sort_by_key(|problem| {
        Reverse(problem.repair.as_ref().map_or(u64::MAX, |repair| repair.offset_bytes))
    });
    Ok(survey)
}

/// Both superblocks, and where the backup was found.
struct Copies {
    primary: Result<Superblock, DecodeError>,
    backup: Result<Superblock, DecodeError>,
    backup_offset_bytes: u64,
    /// The page at the start as it is; zeros if the image is shorter.
    start: Box<[u8; PAGE_LEN]>,
}

impl Copies {
    fn read(image: &Image) -> Copies {
        let pair = image.read_superblocks();
        let mut start = Box::new([0; PAGE_LEN]);
        // An image that is too short shows as that in `pair.primary`.
        let _: Result<(), i32> = read_all_at(image.file(), &mut start[..], PRIMARY_OFFSET_BYTES);
        let mut copies = Copies {
            primary: pair.primary,
            backup: pair.backup.and_then(|backup| at_its_place(backup, pair.backup_offset_bytes)),
            backup_offset_bytes: pair.backup_offset_bytes,
            start,
        };
        // A damaged primary may still say rightly where the backup lies, which is not the last
        // page if the image has grown. A backup that is not there does not check: no harm done.
        if copies.primary.is_err()
            && copies.backup.is_err()
            && let Some(hint) = copies.hinted_backup_offset()
            && let Ok(backup) = image.read_superblock(hint)
            && let Ok(backup) = at_its_place(backup, hint)
        {
            copies.backup = Ok(backup);
            copies.backup_offset_bytes = hint;
        }
        copies
    }

    fn hinted_backup_offset(&self) -> Option<u64> {
        if self.start[..MAGIC.len()] != MAGIC {
            return None;
        }
        let (_, offset, _) = layout().into_iter().find(|row| row.0 == "backup_offset_bytes")?;
        let bytes = self.start.get(offset..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes)).filter(|offset| offset.is_multiple_of(PAGE_BYTES))
    }

    /// What a newer program wrote must neither be judged nor "repaired" by an older one.
    fn refuse_newer(&self, image: &Image) -> Result<(), Failure> {
        for (name, copy) in [("primary", &self.primary), ("backup", &self.backup)] {
            if let Err(
                error @ (DecodeError::UnknownVersion(_) | DecodeError::UnknownIncompatible(_)),
            ) = copy
            {
                let what = format!("{}: {name} superblock", image.path().display());
                return Err(Failure::new(what, format_args!("{error}: nothing was changed")));
            }
        }
        Ok(())
    }

    /// Decides which copy is right, and how the other becomes it.
    fn believe(self, image: &Image, survey: &mut Survey) -> Result<(), Failure> {
        let place = self.backup_offset_bytes;
        match (&self.primary, &self.backup) {
            (Ok(primary), Ok(backup)) if primary == backup => {
                survey.superblock = Some(primary.clone());
            }
            (Ok(primary), Ok(backup)) => {
                let problem = differing(primary, backup, place)?;
                // Generations count only within one volume: a mount goes by the primary.
                let backup_wins = is_newer(backup, primary);
                survey.superblock = Some(if backup_wins { backup } else { primary }.clone());
                survey.problems.push(problem);
            }
            (Ok(primary), Err(error)) => {
                survey.superblock = Some(primary.clone());
                // One that lies beyond the end shows as a truncated image.
                if place + PAGE_BYTES <= image.bytes() {
                    survey.problems.push(Problem {
                        kind: ProblemKind::BackupBad,
                        text: format!("backup superblock: {error}"),
                        repair: Some(backup_from(primary, place)?),
                        advice: String::new(),
                    });
                }
            }
            (Err(error), Ok(backup)) => {
                let problem = self.bad_primary(image, error, backup)?;
                // Nothing that a remnant says is looked for in somebody else's data, and so
                // nothing there is "repaired".
                if problem.kind != ProblemKind::Overwritten {
                    survey.superblock = Some(backup.clone());
                }
                survey.problems.push(problem);
            }
            (Err(primary), Err(backup)) => {
                survey.problems.push(self.both_bad(image, primary, backup)?);
            }
        }
        Ok(())
    }

    fn bad_primary(
        &self,
        image: &Image,
        error: &DecodeError,
        backup: &Superblock,
    ) -> Result<Problem, Failure> {
        // Our magic is our superblock, damaged. Anything else may be somebody's data, now that the
        // image serves another purpose: zeros too, which is how ISO 9660 and btrfs begin.
        let ours = self.start[..MAGIC.len()] == MAGIC;
        if !ours && let Some(other) = mkswapfs::target::foreign_signature(image.path())? {
            return Ok(Problem::beyond_repair(
                ProblemKind::Overwritten,
                format_args!("primary superblock: overwritten: the image now holds {other}"),
                "nothing is changed: if it is to be a swapfs volume again, use mkswapfs -f",
            ));
        }
        Ok(Problem {
            kind: ProblemKind::PrimaryBad,
            text: format!("primary superblock: {error}"),
            repair: Some(primary_from(backup)?),
            advice: String::new(),
        })
    }

    fn both_bad(
        &self,
        image: &Image,
        primary: &DecodeError,
        backup: &DecodeError,
    ) -> Result<Problem, Failure> {
        let strange =
            |error: &DecodeError| matches!(error, DecodeError::BadMagic | DecodeError::TooShort(_));
        if strange(primary) && strange(backup) {
            return Err(Failure::new(
                image.path().display(),
                format_args!("not a swapfs volume: {primary}; make one with mkswapfs"),
            ));
        }
        Ok(Problem::beyond_repair(
            ProblemKind::BothBad,
            format_args!("primary superblock: {primary}; backup superblock: {backup}"),
            FORMAT_AGAIN,
        ))
    }
}

/// A backup names its own place: one found elsewhere belongs to an image of another size.
fn at_its_place(backup: Superblock, place: u64) -> Result<Superblock, DecodeError> {
    if backup.backup_offset_bytes == place {
        return Ok(backup);
    }
    let why = format!("{} is not where it stands, {place}", backup.backup_offset_bytes);
    Err(DecodeError::BadField { field: "backup_offset_bytes", why })
}

fn is_newer(backup: &Superblock, primary: &Superblock) -> bool {
    backup.uuid == primary.uuid && backup.generation > primary.generation
}

fn differing(primary: &Superblock, backup: &Superblock, place: u64) -> Result<Problem, Failure> {
    let repair = if is_newer(backup, primary) {
        primary_from(backup)?
    } else {
        backup_from(primary, place)?
    };
    let how = if primary.uuid == backup.uuid {
        format!("generation {} and {}", primary.generation, backup.generation)
    } else {
        format!("UUID {} and {}", primary.uuid, backup.uuid)
    };
    Ok(Problem {
        kind: ProblemKind::CopiesDiffer,
        text: format!("the primary and the backup superblock differ: {how}"),
        repair: Some(repair),
        advice: String::new(),
    })
}

fn encoded(superblock: &Superblock) -> Result<Box<[u8; PAGE_LEN]>, Failure> {
    superblock.encode().map(Box::new).map_err(|error| Failure::new("superblock", error))
}

fn primary_from(backup: &Superblock) -> Result<Repair, Failure> {
    Ok(Repair {
        action: "write the primary superblock from the backup",
        offset_bytes: PRIMARY_OFFSET_BYTES,
        page: encoded(backup)?,
        loses: false,
    })
}

fn backup_from(primary: &Superblock, place: u64) -> Result<Repair, Failure> {
    Ok(Repair {
        action: "write the backup superblock from the primary",
        offset_bytes: place,
        page: encoded(primary)?,
        loses: false,
    })
}

fn sizes(image: &Image, superblock: &Superblock, survey: &mut Survey) {
    let (have, need) = (image.bytes(), superblock.image_bytes);
    if have < need {
        survey.problems.push(Problem::beyond_repair(
            ProblemKind::Truncated,
            format_args!(
                "the image has {have} bytes ({}), its superblock says {need} ({})",
                size::human(have),
                size::human(need)
            ),
            format_args!("it was cut off: restore its size, or {FORMAT_AGAIN}"),
        ));
    }
    if have >= need + PAGE_BYTES {
        survey.notes.push(format!(
            "the image is larger than the volume takes, by {}: mkswapfs -f would use it",
            size::human(have - need)
        ));
    }
}

/// Page 0 of the volume is the kernel's. It only ever reads it (a mkswap, or a hibernation,
/// writes it), and without a header there swapon fails.
fn swap_header(image: &Image, superblock: &Superblock, survey: &mut Survey) -> Result<(), Failure> {
    let offset_bytes = superblock.data_offset_bytes;
    let mut page = Box::new([0; PAGE_LEN]);
    read_all_at(image.file(), &mut page[..], offset_bytes).map_err(|errno| {
        let error = std::io::Error::from_raw_os_error(errno);
        Failure::os(image.path().display(), "read the swap header", &error)
    })?;
    let why = match SwapHeader::decode(&page) {
        Some(header) if header.slot_count > superblock.slot_count => format!(
            "describes {} slots, and the volume has {}",
            header.slot_count, superblock.slot_count
        ),
        Some(header) => {
            if header != superblock.swap_header() {
                survey.notes.push(
                    "the swap header is another one than at the format: mkswap wrote it anew"
                        .to_owned(),
                );
            }
            if header.slot_count < superblock.slot_count {
                survey.notes.push(format!(
                    "the swap header leaves {} of the {} slots unused: mkswap on the mounted \
                     volume takes them all",
                    superblock.slot_count - header.slot_count,
                    superblock.slot_count
                ));
            }
            return Ok(());
        }
        None if page[SIGNATURE_OFFSET..].starts_with(b"S1SUSPEND") => {
            survey.notes.push("the volume holds a hibernated system's memory".to_owned());
            return Ok(());
        }
        None => "missing, so that swapon would fail".to_owned(),
    };
    survey.problems.push(Problem {
        kind: ProblemKind::BadSwapHeader,
        text: format!("swap header in page 0 of the volume: {why}"),
        repair: Some(Repair {
            action: "write the swap header anew",
            offset_bytes,
            page: Box::new(superblock.swap_header().encode()),
            loses: false,
        }),
        advice: String::new(),
    });
    Ok(())
}

/// Read-only compatible features: one may look, and write nothing.
fn forbid_repairs_of_newer(superblock: &Superblock, survey: &mut Survey) {
    let unknown = superblock.features_read_only_compatible & !KNOWN_READ_ONLY_COMPATIBLE;
    if unknown == 0 {
        return;
    }
    const NEWER: &str = "use the swapfs that formatted it, or a newer one";
    for problem in &mut survey.problems {
        if problem.repair.take().is_some() {
            problem.advice = NEWER.to_owned();
        }
    }
    survey.problems.push(Problem::beyond_repair(
        ProblemKind::UnknownFeatures,
        format_args!(
            "features {unknown:#x} that this program does not know: it can neither mount nor \
             repair the image"
        ),
        NEWER,
    ));
}
