//! How logs are made and damaged, and what is said of them.

use crate::log_survey::builder::{
    DATA_OFFSET, IMAGE_BYTES, LogImage, OBJECT_LEN, SEGMENT_BYTES, Write,
};
use swapfs_format::PAGE_LEN;
use swapfs_format::log::{AnchorState, Content};
use uuid::Uuid;

/// How a case goes on after the first look.
pub(super) enum Course {
    /// Nothing is wrong; this is said.
    Clean(&'static [&'static str]),
    /// `-p` repairs it.
    Preen(&'static [&'static str]),
    /// `-p` leaves it, `-y` repairs it.
    Yes(&'static [&'static str]),
    /// It can't be repaired.
    Hopeless(&'static [&'static str]),
}

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) make: fn(&mut LogImage),
    pub(super) course: Course,
    /// What the last look says.
    pub(super) at_last: &'static [&'static str],
}

const fn case(
    name: &'static str,
    make: fn(&mut LogImage),
    course: Course,
    at_last: &'static [&'static str],
) -> Case {
    Case { name, make, course, at_last }
}

/// The first record of a part in the image.
pub(super) const RECORD: u64 = 128;
/// The checksum in a record.
pub(super) const CHECKSUM: u64 = 12;
/// The first object's bytes in a part with few records.
const OBJECT: u64 = 4096 + 4;

/// Three parts in segment 1 and one in segment 2; answers where those in segment 1 lie.
pub(super) fn filled(log: &mut LogImage) -> [u64; 3] {
    let places = [&[1, 2, 3][..], &[4, 5], &[6]].map(|slots| log.objects(1, slots));
    log.objects(2, &[7, 8]);
    places
}

pub(super) const CASES: &[Case] = &[
    case("empty", |_| (), Course::Clean(&["0 live, 0 dead, 15 free", ": clean"]), &[]),
    case(
        "in use",
        |log| {
            filled(log);
            log.part(3, &[Write::SameFilled(1), Write::Discard(2, 2), Write::Object(9)], |_, _| ());
            log.objects(4, &[20]);
            log.objects(5, &[20]);
        },
        Course::Clean(&["4 live, 1 dead, 10 free", "7 with an object, 1 same-filled, 2 disc"]),
        &[],
    ),
    case(
        "stopped in order",
        |log| {
            filled(log);
            log.stop(3);
        },
        Course::Clean(&["2 live, 0 dead, 12 free, 1 of the checkpoint", "8 with an object"]),
        &[],
    ),
    case(
        "stopped, mounted again, and checkpoint not needed any more",
        |log| {
            filled(log);
            log.stop(3);
            log.anchor(AnchorState::InUse);
            log.objects(4, &[9]);
        },
        Course::Clean(&["3 live, 1 dead"]),
        &[],
    ),
    case(
        "a copy that garbage collection made",
        |log| {
            filled(log);
            log.part(3, &[Write::Object(1)], |_, records| records[0].sequence = 1);
        },
        Course::Clean(&["8 with an object"]),
        &[],
    ),
    case(
        "damaged summary in the middle of a segment",
        |log| {
            let [_, place, _] = filled(log);
            log.flip(place + RECORD + CHECKSUM);
        },
        Course::Yes(&[
            "segment 1, byte 8192: the summary of a part is damaged: the checksum of header and",
            "2 slots lose their newest version; 1 more slot in parts behind it",
            "not repaired: fsck.swapfs -y to write an empty part",
            "5 with an object",
        ]),
        &["6 with an object"],
    ),
    case(
        "damaged summary at the start of a segment",
        |log| {
            let [place, ..] = filled(log);
            log.flip(place + RECORD + CHECKSUM);
        },
        Course::Yes(&["segment 1, byte 0:", "3 slots lose their newest", "3 more slots"]),
        &["5 with an object"],
    ),
    case(
        "damaged summary at the end of a segment",
        |log| {
            let [_, _, place] = filled(log);
            log.flip(place + RECORD + 21);
        },
        Course::Yes(&["byte 16384: the summary of a part is damaged", "zero the page there"]),
        &["7 with an object"],
    ),
    case(
        "damaged summary of the only part",
        |log| {
            let place = log.objects(1, &[1, 2]);
            log.objects(2, &[3]);
            log.flip(place + RECORD + CHECKSUM);
        },
        Course::Yes(&["segment 1, byte 0", "2 slots lose", "1 damaged"]),
        &["1 live, 0 dead, 14 free"],
    ),
    case(
        "damaged header, which can't be of this volume",
        |log| {
            let [_, place, _] = filled(log);
            log.flip(place + 82);
        },
        Course::Yes(&["byte 8192: the summary", "has the newest version of can't be told"]),
        &["6 with an object"],
    ),
    case(
        "damaged summary that no slot needs",
        |log| {
            let [_, place, _] = filled(log);
            log.objects(3, &[4, 5]);
            log.flip(place + RECORD + CHECKSUM);
        },
        Course::Preen(&["no slot needs anything of it; 1 more slot", "fsck.swapfs -p"]),
        &["8 with an object"],
    ),
    case(
        "summary of zeros in the middle of a segment",
        |log| {
            let [_, place, _] = filled(log);
            log.write(place, &[0; PAGE_LEN]);
        },
        Course::Yes(&["byte 8192: the summary of a part is gone", "can't be told"]),
        &["6 with an object"],
    ),
    case(
        "torn part at the end of the log",
        |log| {
            filled(log);
            let place = log.objects(2, &[1, 9]);
            log.flip(place + RECORD + CHECKSUM);
        },
        Course::Clean(&["note: segments that end in a part that was not written whole: 1"]),
        &["8 with an object"],
    ),
    case(
        "torn part of an earlier crash, whose number was given out again",
        |log| {
            filled(log);
            let place = log.objects(2, &[1, 9]);
            log.flip(place + RECORD + CHECKSUM);
            log.sequence -= 1;
            log.objects(3, &[10]);
            log.objects(3, &[11]);
        },
        Course::Clean(&["note: segments that end in a part that was not written whole: 1"]),
        &["10 with an object"],
    ),
    case(
        "torn part of an earlier crash, whose number nobody has",
        |log| {
            filled(log);
            log.durable = Some(4);
            let torn = log.objects(2, &[1, 9]);
            log.objects(3, &[10]);
            log.flip(torn + RECORD + CHECKSUM);
            log.anchor(AnchorState::InUse);
            log.durable = None;
            log.objects(4, &[11]);
        },
        Course::Clean(&["note: segments that end in a part that was not written whole: 1"]),
        &["10 with an object"],
    ),
    case(
        "the same, stopped in order since",
        |log| {
            filled(log);
            log.durable = Some(4);
            let torn = log.objects(2, &[1, 9]);
            log.flip(torn + RECORD + CHECKSUM);
            log.forget(&[1, 9]);
            log.objects(3, &[1, 10]);
            log.anchor(AnchorState::InUse);
            log.objects(4, &[11]);
            log.stop(5);
        },
        Course::Clean(&["note: segments that end in a part that was not written whole: 1"]),
        &["10 with an object"],
    ),
    case(
        "torn part over what is left of an older filling",
        |log| {
            filled(log);
            log.objects(3, &[1, 2, 3, 4, 5, 6]);
            let old = log.read(LogImage::segment_offset(1), SEGMENT_BYTES as usize);
            let first = log.objects(4, &[1]);
            let torn = log.read(first, 4096);
            log.write(first, &[0; 8192]);
            // Segment 4's part again, as one that was to be the first of segment 1's next filling.
            let mut page = torn;
            page[72..76].copy_from_slice(&1u32.to_le_bytes());
            log.write(LogImage::segment_offset(1), &old);
            log.write(LogImage::segment_offset(1), &page);
        },
        Course::Clean(&["not written whole: 1"]),
        &[],
    ),
    case(
        "live object damaged",
        |log| {
            let [place, ..] = filled(log);
            log.flip(place + OBJECT + 17);
            log.flip(place + OBJECT + 4 + OBJECT_LEN as u64);
        },
        Course::Hopeless(&[
            "segment 1: 2 live objects with a wrong checksum: slot 1 at byte 4096, slot 2 at byte",
            "can't be repaired: reading such a slot is an error until",
        ]),
        &[],
    ),
    case(
        "dead object damaged",
        |log| {
            let [place, ..] = filled(log);
            log.objects(3, &[1]);
            log.flip(place + OBJECT);
        },
        Course::Clean(&["note: objects with a wrong checksum that no slot needs: 1"]),
        &[],
    ),
    case(
        "object damaged in the tail that was not durable: the older one counts",
        |log| {
            filled(log);
            log.durable = Some(3);
            let place = log.objects(3, &[1, 2]);
            log.flip(place + OBJECT);
        },
        Course::Clean(&["note: objects that were not written whole, at the end of the log: 1"]),
        &["8 with an object"],
    ),
    case(
        "the same, in a volume that was stopped in order",
        |log| {
            filled(log);
            let place = log.objects(4, &[1, 2]);
            log.stop(3);
            log.flip(place + OBJECT);
        },
        Course::Hopeless(&["segment 4: 1 live object with a wrong checksum: slot 1"]),
        &[],
    ),
    case(
        "swapped segments",
        |log| {
            filled(log);
            let [one, two] = [1, 2].map(LogImage::segment_offset);
            let len = SEGMENT_BYTES as usize;
            let (first, second) = (log.read(one, len), log.read(two, len));
            log.write(one, &second);
            log.write(two, &first);
        },
        Course::Yes(&[
            "segment 1, byte 0: what stands here belongs to segment 2, byte 0: segments were swap",
            "2 slots lose",
            "6 slots lose",
            "2 damaged",
        ]),
        &["0 live, 0 dead, 15 free"],
    ),
    case(
        "a segment that was copied",
        |log| {
            filled(log);
            let copy = log.read(LogImage::segment_offset(1), SEGMENT_BYTES as usize);
            log.write(LogImage::segment_offset(9), &copy);
        },
        Course::Preen(&["segment 9, byte 0: what stands here", "no slot needs anything of it"]),
        &["8 with an object"],
    ),
    case(
        "stale segment of an earlier format of the volume",
        |log| {
            filled(log);
            let now = log.owner;
            log.owner.created_unix_s -= 1000;
            log.objects(5, &[1, 2]);
            log.owner = now;
        },
        Course::Clean(&["note: segments with nothing but what is left of another or an older"]),
        &["13 free", "8 with an object"],
    ),
    case(
        "stale segment of another volume, in a free one and behind the last part",
        |log| {
            filled(log);
            let now = log.owner;
            log.owner.uuid = Uuid::from_u128(3);
            log.objects(1, &[1]);
            log.objects(6, &[1]);
            log.owner = now;
        },
        Course::Clean(&["another or an older volume: 1"]),
        &[],
    ),
    case(
        "both anchors zeros",
        |log| {
            filled(log);
            log.write(DATA_OFFSET, &[0; 8192]);
        },
        Course::Preen(&["anchor 0: there is none", "1 left"]),
        &["8 with an object"],
    ),
    case(
        "both anchors damaged",
        |log| {
            filled(log);
            log.stop(3);
            log.flip(DATA_OFFSET + 60);
            log.flip(DATA_OFFSET + 4096 + 60);
        },
        Course::Preen(&["anchor 0: it is damaged", "anchor 1: it is damaged", "2 left"]),
        &["8 with an object", "2 live, 1 dead"],
    ),
    case(
        "the older anchor damaged: the clean stop stays one",
        |log| {
            filled(log);
            log.stop(3);
            log.flip(DATA_OFFSET + 4096 + 60);
        },
        Course::Preen(&["anchor 1: it is damaged", "1 of the checkpoint"]),
        &["1 of the checkpoint"],
    ),
    case(
        "the newer anchor damaged, behind a clean stop",
        |log| {
            filled(log);
            log.stop(3);
            log.anchor(AnchorState::InUse);
            log.objects(4, &[9]);
            log.flip(DATA_OFFSET + 4096 + 60);
        },
        Course::Preen(&[
            "the anchor says that the log was stopped in order, and there are newer parts",
            "anchor 1: it is damaged",
        ]),
        &["9 with an object", "3 live, 1 dead"],
    ),
    case(
        "anchors of an older volume",
        |log| {
            filled(log);
            let now = log.owner;
            log.owner.created_unix_s -= 1000;
            log.anchor(AnchorState::InUse);
            log.anchor(AnchorState::InUse);
            log.owner = now;
        },
        Course::Preen(&["anchor 0: it belongs to another or an older volume", "1 left"]),
        &[],
    ),
    case(
        "checkpoint damaged",
        |log| {
            filled(log);
            let place = log.stop(3);
            log.flip(place + 4096 + 20);
        },
        Course::Preen(&["the checkpoint of the clean stop: segment 3, byte 0: it is damaged"]),
        &["8 with an object", "0 of the checkpoint"],
    ),
    case(
        "checkpoint lost",
        |log| {
            filled(log);
            let place = log.stop(3);
            log.write(place, &[0; 4096]);
        },
        Course::Preen(&["the checkpoint of the clean stop: 1 part of it, and 0 are there"]),
        &["8 with an object"],
    ),
    case(
        "checkpoint that names what the parts do not have",
        |log| {
            let [_, place, _] = filled(log);
            log.stop(3);
            log.flip(place + RECORD + CHECKSUM);
        },
        Course::Yes(&[
            "byte 8192: the summary",
            "it has 3 slots with an object where the parts' records have none",
            "2 left",
        ]),
        &["6 with an object"],
    ),
    case(
        "a part's number twice",
        |log| {
            filled(log);
            log.sequence -= 1;
            log.objects(3, &[9]);
        },
        Course::Hopeless(&["segment 3: a second part 4", "mkswapfs -f"]),
        &[],
    ),
    case(
        "numbers that do not grow",
        |log| {
            log.sequence = 10;
            log.objects(1, &[1]);
            log.sequence = 20;
            log.objects(1, &[2]);
            log.sequence = 15;
            log.objects(1, &[3]);
        },
        Course::Hopeless(&["segment 1: part 15 stands behind part 20"]),
        &[],
    ),
    case(
        "a slot that the volume does not have",
        |log| {
            log.part(1, &[Write::Object(256), Write::Discard(250, 7)], |_, _| ());
            log.objects(2, &[1]);
        },
        Course::Hopeless(&["a record for slot 256, which", "a record for slot 250", "2 left"]),
        &[],
    ),
    case(
        "overlapping objects",
        |log| {
            log.part(1, &[Write::Object(1), Write::Object(2)], |_, records| {
                if let Content::Object { offset, .. } = &mut records[1].content {
                    *offset -= 8;
                }
            });
            log.objects(2, &[3]);
        },
        Course::Hopeless(&["the objects at bytes 4096 and 5092 overlap", "slot 2 at byte 5092"]),
        &[],
    ),
    case(
        "an object that two slots share",
        |log| {
            log.part(1, &[Write::Object(1), Write::Object(2)], |_, records| {
                records[1].content = records[0].content;
            });
        },
        Course::Clean(&["2 with an object"]),
        &[],
    ),
    case(
        "truncated device",
        |log| {
            filled(log);
            log.resize(IMAGE_BYTES - SEGMENT_BYTES);
        },
        Course::Hopeless(&["the image has 2035712 bytes", "it was cut off"]),
        &[],
    ),
];
