//! Tiers on devices in memory, so small that everything moves all the time.

mod evacuation;
mod failing;
mod interleavings;
mod moving;
mod servers;

use super::*;
use crate::backend::objects::fill;
use crate::error::ErrorKind;
use crate::held::BACKEND_REGIONS;
use crate::members::NoKeeper;
use crate::sys::file::Discarded;
use servers::{Address, Server};
use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;
use swapfs_format::PAGE_LEN;
use swapfs_format::remote::RemoteLayout;
use swapfs_format::types::{Algorithm, ZmemOptions};

const DATA_OFFSET_BYTES: u64 = 64 << 10;

/// A device that is nothing but bytes, and can be made to fail.
#[derive(Debug)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    fail_reads: AtomicBool,
    fail_writes: AtomicBool,
    /// What writes fail with.
    errno: AtomicI32,
    written_bytes: AtomicU64,
}

impl Memory {
    fn new(data_bytes: u64) -> Arc<Memory> {
        Arc::new(Memory {
            bytes: Mutex::new(vec![0; (DATA_OFFSET_BYTES + data_bytes) as usize]),
            fail_reads: AtomicBool::new(false),
            fail_writes: AtomicBool::new(false),
            errno: AtomicI32::new(libc::EIO),
            written_bytes: AtomicU64::new(0),
        })
    }

    fn fail(&self, fail: bool) {
        self.fail_reads.store(fail, Ordering::SeqCst);
        self.fail_writes.store(fail, Ordering::SeqCst);
    }
}

impl BlockDevice for Memory {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::result::Result<(), i32> {
        if self.fail_reads.load(Ordering::SeqCst) {
            return Err(libc::EIO);
        }
        let bytes = self.bytes.lock();
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(bytes.get(range).ok_or(libc::EIO)?);
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> std::result::Result<(), i32> {
        assert!(offset.is_multiple_of(4096) && buffer.len().is_multiple_of(4096));
        if self.fail_writes.load(Ordering::SeqCst) {
            return Err(self.errno.load(Ordering::SeqCst));
        }
        let mut bytes = self.bytes.lock();
        let range = offset as usize..offset as usize + buffer.len();
        bytes.get_mut(range).ok_or(libc::EIO)?.copy_from_slice(buffer);
        self.written_bytes.fetch_add(buffer.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> std::result::Result<Discarded, i32> {
        self.bytes.lock()[offset as usize..(offset + length) as usize].fill(0xdd);
        Ok(Discarded::Yes)
    }

    fn flush(&self) -> std::result::Result<(), i32> {
        Ok(())
    }

    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Images that were formatted beforehand.
#[derive(Debug, Default)]
struct Shelf(Mutex<Vec<(String, Arc<Memory>, MemberSetup)>>);

impl Images for Shelf {
    fn open(&self, path: &str) -> std::result::Result<OpenedMember, String> {
        let shelf = self.0.lock();
        let found = shelf.iter().find(|(name, ..)| name == path);
        let (_, memory, setup) = found.ok_or("no such image")?;
        let device: Arc<dyn BlockDevice> = Arc::clone(memory) as Arc<dyn BlockDevice>;
        Ok(OpenedMember {
            device: device_of(device),
            setup: setup.clone(),
            file: tempfile::tempfile().map_err(|error| error.to_string())?,
        })
    }

    fn check(&self, device: &MemberDevice, _: Uuid) -> std::result::Result<(), i32> {
        let mut page = vec![0; PAGE_LEN];
        let device = match &device.backing {
            Backing::Blocks(device) => device,
            Backing::Objects(store) => return store.check(),
            Backing::Unopened(_) => return Err(libc::ENODEV),
        };
        device.read_at(&mut page, 0)?;
        device.write_at(&page, 0)
    }

    fn record(&self, _: &[MemberSetup]) -> std::result::Result<(), String> {
        Ok(())
    }

    fn record_options(
        &self,
        _: &MemberDevice,
        _: &str,
        uuid: Uuid,
        change: &dyn Fn(MemberKind, &str) -> std::result::Result<String, String>,
    ) -> std::result::Result<MemberOptions, String> {
        let kind = if uuid.as_u128() == 1 { MemberKind::Log } else { MemberKind::Linear };
        MemberOptions::parse(kind, &change(kind, "")?).map_err(|error| error.to_string())
    }
}

/// What outlives an instance: memory, devices, options.
struct Fixture {
    regions: [File; BACKEND_REGIONS],
    devices: Vec<(Arc<Memory>, MemberSetup)>,
    options: TierOptions,
    slots: u64,
    shelf: Arc<Shelf>,
    server: Arc<Server>,
}

fn device_of(device: Arc<dyn BlockDevice>) -> MemberDevice {
    MemberDevice { backing: Backing::Blocks(device), on_block_device: false, deadline: None }
}

fn member(order: u32, kind: MemberKind, data_bytes: u64, options: &str) -> MemberSetup {
    let options = MemberOptions::parse(kind, options).unwrap();
    let layout = match (kind, options.remote.as_ref().map(|remote| remote.layout)) {
        (_, Some(RemoteLayout::Objects)) => Layout::Objects,
        (MemberKind::Log, _) | (_, Some(RemoteLayout::Log)) => Layout::Log,
        _ => Layout::Linear,
    };
    MemberSetup {
        order,
        uuid: Uuid::from_u128(u128::from(order)),
        kind,
        layout,
        is_remote: kind == MemberKind::Remote,
        data_offset_bytes: DATA_OFFSET_BYTES,
        data_bytes,
        segment_bytes: 64 << 10,
        path: format!("member-{order}"),
        options,
    }
}

impl Fixture {
    /// A top of `top_bytes`, and members of these kinds, sizes and options.
    fn new(slots: u64, top_bytes: u64, members: &[(MemberKind, u64, &str)]) -> Fixture {
        let zmem = ZmemOptions {
            algorithm: Algorithm::Lz4,
            limit_bytes: Some(top_bytes),
            reserve_bytes: 1 << 20,
            recompress: None,
            dedup: false,
        };
        let devices = (1..)
            .zip(members)
            .map(|(order, (kind, bytes, options))| {
                (Memory::new(*bytes), member(order, *kind, *bytes, options))
            })
            .collect();
        Fixture {
            regions: std::array::from_fn(|_| {
                // SAFETY: the name is a C string.
                let descriptor =
                    unsafe { libc::memfd_create(c"swapfs".as_ptr(), libc::MFD_CLOEXEC) };
                assert!(descriptor >= 0);
                // SAFETY: just made, and nobody else's.
                unsafe { File::from_raw_fd(descriptor) }
            }),
            devices,
            options: TierOptions {
                zmem,
                high_percent: 60,
                low_percent: 40,
                degraded: false,
                probe: Duration::from_millis(300),
            },
            slots,
            shelf: Arc::default(),
            server: Arc::default(),
        }
    }

    /// An instance that serves, on memory that is new or that another one has left.
    fn open(&self, adopted: bool) -> Tier {
        let tier = self.standby(adopted);
        tier.activate().unwrap();
        tier
    }

    fn standby(&self, adopted: bool) -> Tier {
        let regions = std::array::from_fn(|index| self.regions[index].try_clone().unwrap());
        let mut devices: [Option<MemberDevice>; MAX_DEVICE_MEMBERS] = Default::default();
        for (device, (memory, setup)) in devices.iter_mut().zip(&self.devices) {
            let memory = device_of(Arc::clone(memory) as Arc<dyn BlockDevice>);
            let deadline = setup.is_remote.then_some(Duration::from_secs(1));
            let backing = match setup.layout {
                Layout::Objects => Backing::Unopened(Arc::new(Address(Arc::clone(&self.server)))),
                _ => memory.backing,
            };
            *device = Some(MemberDevice { backing, deadline, ..memory });
        }
        let setup = Setup {
            slot_count: self.slots,
            options: &self.options,
            threads: 2,
            buffers: BufferPool::new(16, 6).unwrap(),
            devices,
            members: self.devices.iter().map(|(_, setup)| setup.clone()).enumerate().collect(),
            keeper: Arc::new(NoKeeper),
            images: Arc::clone(&self.shelf) as Arc<dyn Images>,
            is_open: true,
        };
        Tier::new(setup, &Held::regions(regions, adopted)).unwrap()
    }
}

/// A page of its own for each `key`: of one word, compressible, or random.
fn page_of(key: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE_LEN];
    let mut state = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    match key % 8 {
        0 => fill(&mut page, key),
        1 => fill(&mut page, random() | 1 << 63),
        2 => {
            for word in page.chunks_exact_mut(8) {
                word.copy_from_slice(&random().to_le_bytes());
            }
        }
        kind => {
            for (index, word) in page.chunks_exact_mut(8).enumerate() {
                let value = if (index as u64).is_multiple_of(kind) { random() } else { key };
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    page
}

#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % end
    }
}

fn read(tier: &Tier, slot: u64) -> Result<Vec<u8>> {
    let mut page = vec![0xee; PAGE_LEN];
    tier.read(slot, &mut page).map(|()| page)
}

fn check(tier: &Tier, slot: u64, key: Option<u64>, what: &str) {
    let expected = key.map_or_else(|| vec![0; PAGE_LEN], page_of);
    match read(tier, slot) {
        Ok(page) => assert!(page == expected, "{what}: slot {slot} has another page than {key:?}"),
        Err(error) => panic!("{what}: slot {slot}, which has {key:?}: {error}"),
    }
}

/// What every slot must hold, by the key of its page.
struct Model(Vec<Option<u64>>);

impl Model {
    fn new(slots: u64) -> Model {
        Model(vec![None; slots as usize])
    }

    fn check_all(&self, tier: &Tier, what: &str) {
        for (slot, &key) in (0..).zip(&self.0) {
            check(tier, slot, key, what);
        }
        // Large requests, over whatever lies where.
        let mut pages = vec![0; 100 * PAGE_LEN];
        for first in (0..self.0.len().saturating_sub(100)).step_by(97) {
            tier.read(first as u64, &mut pages).unwrap();
            for (page, key) in pages.chunks_exact(PAGE_LEN).zip(&self.0[first..]) {
                assert!(page == key.map_or_else(|| vec![0; PAGE_LEN], page_of), "{what}");
            }
        }
    }

    /// Random writes, discards and reads.
    fn change(&mut self, tier: &Tier, random: &mut Random, steps: u64) {
        let slots = self.0.len() as u64;
        for step in 0..steps {
            let slot = random.below(slots);
            match random.below(12) {
                0 => {
                    let count = random.below(40).min(slots - slot);
                    tier.discard(slot, count).unwrap();
                    self.0[slot as usize..(slot + count) as usize].fill(None);
                }
                1..=5 => {
                    let count = (1 + random.below(6)).min(slots - slot);
                    let keys: Vec<u64> = (0..count).map(|_| 1 + random.below(1 << 40)).collect();
                    let pages: Vec<u8> = keys.iter().flat_map(|&key| page_of(key)).collect();
                    tier.write(slot, &pages).unwrap();
                    for (to, key) in self.0[slot as usize..].iter_mut().zip(keys) {
                        *to = Some(key);
                    }
                }
                _ => check(tier, slot, self.0[slot as usize], &format!("step {step}")),
            }
        }
    }
}

fn number(tier: &Tier, wanted: &str) -> u64 {
    let mut found = None;
    tier.statistics(&mut |name, value| {
        if name == wanted {
            found = Some(value);
        }
    });
    found.unwrap_or_else(|| panic!("no number {wanted}"))
}

/// Waits until `done`, which is checked for up to a minute: how long it takes is not the test.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within a minute: {what}");
}

fn member_at(tier: &Tier, order: u32) -> Arc<Member> {
    tier.lower.of_order(order).unwrap()
}

/// Where a slot's page is: 0 for the top.
fn tier_of(tier: &Tier, slot: u64) -> u32 {
    let object = tier.store().table.get(slot).as_object().expect("an object");
    tier.lower.member_of(object.location).map_or(0, |member| member.order())
}
