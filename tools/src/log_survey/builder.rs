//! Images of type `log` for tests, byte by byte: what a daemon would write, and what it would not.

use mkswapfs::FormatRequest;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use swapfs_format::log::{
    Anchor, AnchorState, CHECKPOINT_LEAF_LEN, Content, Owner, PART_HEADER_LEN, PartHeader,
    PartKind, RECORD_LEN, Record, payload_offset_for,
};
use swapfs_format::superblock::Superblock;
use swapfs_format::{PAGE_LEN, types};
use swapfsd::codec::{self, Encoding};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) const DATA_OFFSET: u64 = 1 << 20;
pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;
pub(crate) const SEGMENTS: u32 = 16;
pub(crate) const SLOTS: u64 = 256;
pub(crate) const IMAGE_BYTES: u64 = DATA_OFFSET + SEGMENT_BYTES * SEGMENTS as u64 + 4096;
/// Encoded bytes of every object.
pub(crate) const OBJECT_LEN: usize = 1000;

/// What a record of a part shall say.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Write {
    Object(u32),
    SameFilled(u32),
    Discard(u32, u32),
}

/// An image in the making.
pub(crate) struct LogImage {
    _folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) owner: Owner,
    /// The number of the next part.
    pub(crate) sequence: u64,
    /// The number of the next record.
    pub(crate) write_sequence: u64,
    /// What the next parts say is durable; `None`: all before them.
    pub(crate) durable: Option<u64>,
    generation: u64,
    /// By segment: its filling, and where the next part goes.
    fill: BTreeMap<u32, (u64, u32)>,
    /// Where the slots' objects are.
    objects: BTreeMap<u32, u64>,
}

impl LogImage {
    /// An empty log, in use.
    pub(crate) fn new() -> LogImage {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("image");
        let mut request = FormatRequest::new(&path);
        request.type_name = types::LINEAR.name.to_owned();
        request.volume_bytes = Some(SLOTS * 4096);
        request.uuid = Some(Uuid::from_u128(0xfeed));
        mkswapfs::format_image(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let mut page = [0; PAGE_LEN];
        File::open(&path).unwrap().read_exact_at(&mut page, 0).unwrap();
        let mut superblock = Superblock::decode(&page).unwrap();
        superblock.type_name = types::LOG.name.to_owned();
        superblock.erase_block_bytes = SEGMENT_BYTES as u32;
        let mut image = LogImage {
            _folder: folder,
            path,
            owner: Owner { uuid: superblock.uuid, created_unix_s: superblock.created_unix_s },
            sequence: 1,
            write_sequence: 1,
            durable: None,
            generation: 0,
            fill: BTreeMap::new(),
            objects: BTreeMap::new(),
        };
        let page = superblock.encode().unwrap();
        image.write(0, &page);
        image.write(superblock.backup_offset_bytes, &page);
        image.write(DATA_OFFSET, &[0; PAGE_LEN]);
        image.anchor(AnchorState::InUse);
        image
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        File::options().write(true).open(&self.path).unwrap().write_all_at(bytes, offset).unwrap();
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(&self.path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// Flips a bit of a byte.
    pub(crate) fn flip(&self, offset: u64) {
        let byte = self.read(offset, 1)[0];
        self.write(offset, &[byte ^ 4]);
    }

    pub(crate) fn resize(&self, bytes: u64) {
        File::options().write(true).open(&self.path).unwrap().set_len(bytes).unwrap();
    }

    /// Writes the next anchor.
    pub(crate) fn anchor(&mut self, state: AnchorState) {
        let anchor = Anchor {
            owner: self.owner,
            generation: self.generation + 1,
            segment_bytes: SEGMENT_BYTES,
            next_sequence: self.sequence,
            next_write_sequence: self.write_sequence,
            state,
        };
        self.generation += 1;
        self.write(DATA_OFFSET + self.generation % 2 * 4096, &anchor.encode());
    }

    pub(crate) fn segment_offset(segment: u32) -> u64 {
        DATA_OFFSET + u64::from(segment) * SEGMENT_BYTES
    }

    /// Appends a part with objects for these slots; answers where in the image it lies.
    pub(crate) fn objects(&mut self, segment: u32, slots: &[u32]) -> u64 {
        let writes: Vec<Write> = slots.iter().map(|&slot| Write::Object(slot)).collect();
        self.part(segment, &writes, |_, _| ())
    }

    /// Appends a part; `change` may spoil its header and records before they get their checksum.
    pub(crate) fn part(
        &mut self,
        segment: u32,
        writes: &[Write],
        change: impl FnOnce(&mut PartHeader, &mut [Record]),
    ) -> u64 {
        let (mut records, mut payload) = (Vec::new(), Vec::new());
        let payload_offset = payload_offset_for(writes.len()) as u32;
        let offset_bytes = self.fill.get(&segment).map_or(0, |fill| fill.1);
        for write in writes {
            let (slot, content) = match *write {
                Write::SameFilled(slot) => (slot, Content::SameFilled(7)),
                Write::Discard(slot, count) => (slot, Content::Discarded(count)),
                Write::Object(slot) => {
                    let bytes: Vec<u8> =
                        (0..OBJECT_LEN).map(|at| (at as u64 * self.write_sequence) as u8).collect();
                    let checksum = codec::checksum(Encoding::Lz4, &bytes);
                    let offset = offset_bytes + payload_offset + payload.len() as u32;
                    payload.extend(checksum.to_le_bytes());
                    payload.extend(bytes);
                    let place = u64::from(segment) * SEGMENT_BYTES + u64::from(offset);
                    self.objects.insert(slot, place);
                    let (encoding, len) = (Encoding::Lz4 as u8, OBJECT_LEN as u16);
                    (slot, Content::Object { encoding, offset, len, checksum })
                }
            };
            if !matches!(write, Write::Object(_)) {
                self.objects.remove(&slot);
            }
            records.push(Record { sequence: self.write_sequence, slot, content });
            self.write_sequence += 1;
        }
        self.append(segment, PartKind::Data, records, &payload, change)
    }

    fn append(
        &mut self,
        segment: u32,
        kind: PartKind,
        mut records: Vec<Record>,
        payload: &[u8],
        change: impl FnOnce(&mut PartHeader, &mut [Record]),
    ) -> u64 {
        let sequence = self.sequence;
        self.sequence += 1;
        let (filling, offset_bytes) = *self.fill.entry(segment).or_insert((sequence, 0));
        let payload_offset = payload_offset_for(records.len());
        let part_bytes = (payload_offset + payload.len()).next_multiple_of(PAGE_LEN);
        self.fill.insert(segment, (filling, offset_bytes + part_bytes as u32));
        let mut header = PartHeader {
            kind,
            owner: self.owner,
            sequence,
            filling,
            began_sequence: self.write_sequence,
            durable_sequence: self.durable.unwrap_or(sequence - 1),
            segment,
            offset_bytes,
            part_bytes: part_bytes as u32,
            record_count: records.len() as u32,
            payload_offset_bytes: payload_offset as u32,
            payload_bytes: payload.len() as u32,
            payload_crc32: crc32(payload),
            next_segment: 0,
        };
        change(&mut header, &mut records);
        let mut part = vec![0; part_bytes];
        for (index, record) in records.iter().enumerate() {
            part[PART_HEADER_LEN + index * RECORD_LEN..][..RECORD_LEN]
                .copy_from_slice(&record.encode());
        }
        part[payload_offset..][..payload.len()].copy_from_slice(payload);
        header.write_to(&mut part);
        let place = LogImage::segment_offset(segment) + u64::from(offset_bytes);
        self.write(place, &part);
        place
    }

    /// The slots hold nothing: what was written to them is to be torn.
    pub(crate) fn forget(&mut self, slots: &[u32]) {
        self.objects.retain(|slot, _| !slots.contains(slot));
    }

    /// A clean stop, with its checkpoint in `segment`; answers where that lies.
    pub(crate) fn stop(&mut self, segment: u32) -> u64 {
        let mut leaf = vec![0; CHECKPOINT_LEAF_LEN];
        for (&slot, &place) in &self.objects {
            leaf[8 + 8 * slot as usize..][..8].copy_from_slice(&entry(place).to_le_bytes());
        }
        let checkpoint_sequence = self.sequence;
        let place = self.append(segment, PartKind::Checkpoint, Vec::new(), &leaf, |_, _| ());
        let checkpoint_segment = segment;
        self.anchor(AnchorState::Clean {
            checkpoint_segment,
            checkpoint_parts: 1,
            checkpoint_sequence,
        });
        place
    }
}

/// The entry of a slot whose object lies at that byte of the data section.
fn entry(place: u64) -> u64 {
    let bits = Encoding::Lz4 as u64 | (OBJECT_LEN as u64 - 1) << 9 | place << 21;
    let set = (0..64).filter(|bit| bits >> bit & 1 == 1);
    set.fold(bits, |entry, bit| entry ^ 1 << (6 + bit % 3))
}

/// CRC-32 (IEEE), bit by bit: a second opinion on what the format crate computes by table.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}
