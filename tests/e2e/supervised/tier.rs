//! Tier volumes: members come and go, fail and are missing, while the worker is killed.

use super::*;
use swapfs_format::PAGE_LEN;
use swapfs_tests::tiers::{self, Desk, Formatted, Socket, Stop};
use swapfsd::admin::{Direction, Reply, Request};
use swapfsd::image::{Access, Image};

/// Pages of [`Filled`].
const PAGES: u64 = 1500;

fn format(folder: &Path) -> Formatted {
    let members = [
        ("log", "8M", "segment=64K,high=30,low=20,promote=always,keep=inclusive"),
        ("linear", "16M", "promote=second,keep=exclusive"),
    ];
    tiers::format(&programs(), folder, "8M", tiers::TINY_TOP, &members)
}

/// A volume with tiny tiers and known pages, which do not compress.
struct Filled {
    mounted: Mounted,
    formatted: Formatted,
    socket: Socket,
    file: File,
    pages: Vec<u8>,
}

impl Filled {
    fn new(folder: &Path, variable: Option<(&str, &str)>) -> Filled {
        let formatted = format(folder);
        let mountpoint = folder.join("image.mnt");
        fs::create_dir_all(&mountpoint).unwrap();
        let programs = programs();
        let mut command = programs.command("swapfsd");
        command.args([&formatted.image, &mountpoint]).envs(variable);
        assert!(command.status().unwrap().success());
        Filled::on(Mounted { programs, image: formatted.image.clone(), mountpoint }, formatted)
    }

    fn on(mounted: Mounted, formatted: Formatted) -> Filled {
        let socket = Socket(formatted.superblock().uuid);
        let file = File::options().read(true).write(true).open(mounted.swap_file()).unwrap();
        let mut pages = vec![0; PAGES as usize * PAGE_LEN];
        rng::Rng::new(rng::seed("tier")).fill(&mut pages);
        let filled = Filled { mounted, formatted, socket, file, pages };
        filled.write();
        filled
    }

    fn write(&self) {
        // Whole pages: of a part, the rest would have to be read, which may be lost.
        for (slot, page) in (2u64..).zip(self.pages.chunks(PAGE_LEN)) {
            self.file.write_all_at(page, slot * 4096).unwrap();
        }
    }

    /// Of a tier, as stats.json has it.
    fn tier(&self, order: u32) -> serde_json::Value {
        let stats = self.mounted.stats();
        let mut tiers = stats["tiers"].as_array().unwrap().iter();
        tiers.find(|tier| tier["order"] == order).cloned().unwrap_or_default()
    }

    fn wait_for_pages_on(&self, order: u32) {
        wait_until("pages on that tier", || self.tier(order)["pages"].as_u64() > Some(100));
    }

    fn check(&self) {
        let mut found = vec![0; self.pages.len()];
        self.file.read_exact_at(&mut found, 8192).unwrap();
        for (slot, (found, page)) in
            found.chunks(PAGE_LEN).zip(self.pages.chunks(PAGE_LEN)).enumerate()
        {
            assert!(found == page, "page {slot} is another one");
        }
    }

    fn kill_worker(&self) {
        let worker = self.mounted.number("worker_pid");
        kill(worker, libc::SIGKILL);
        wait_until("a successor", || self.mounted.number("worker_pid") != worker);
    }

    /// Asks whoever serves, after a death too.
    fn orders(&self) -> (Vec<u32>, Option<u32>) {
        let mut orders = Err(String::new());
        wait_until("the control socket", || {
            orders = self.socket.orders();
            orders.is_ok()
        });
        orders.unwrap()
    }

    fn add(&self, order: usize) -> Result<Reply, String> {
        self.socket.ask(&Request::Add { image: self.formatted.members[order - 1].clone() })
    }

    fn remove(&self, tier: u32, rate_bytes: Option<u64>) -> Result<Reply, String> {
        self.socket.ask(&Request::Remove { tier, direction: Direction::Auto, rate_bytes })
    }

    fn end(self) {
        let stats = self.mounted.stats();
        assert_eq!(stats["errors"]["checksum"], 0);
        assert_eq!(stats["heap_allocations_on_io_path"], 0);
        assert_eq!(stats["backend"]["demotion_decompressions"], 0);
        drop(self.file);
        self.mounted.unmount();
    }
}

#[test]
fn tier_under_kills() {
    skip_if!(cannot_guard());
    let folder = folder();
    let mounted = Mounted::existing(&programs(), &format(folder.path()).image, "");
    kills_under_conformance("kills, tier", mounted);
}

#[test]
fn tier_under_kills_whose_members_come_and_go() {
    skip_if!(cannot_guard());
    let folder = folder();
    let formatted = format(folder.path());
    let mounted = Mounted::existing(&programs(), &formatted.image, "");
    let socket = Socket(formatted.superblock().uuid);
    let stop = AtomicBool::new(false);
    let (removed, added) = std::thread::scope(|scope| {
        let changing = scope.spawn(|| tiers::come_and_go(&socket, &formatted.members, &stop, true));
        let stops = Stop(&stop);
        let seed = rng::seed("kills, tier that comes and goes");
        let target = swap_file(&mounted);
        let mut random = rng::Rng::new(seed);
        let done = AtomicBool::new(false);
        let killed = std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let mut killed = 0;
                while !done.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(50 + random.below(500)));
                    kill(mounted.number("worker_pid"), libc::SIGKILL);
                    killed += 1;
                }
                killed
            });
            let ends = Stop(&done);
            for round in 0..6 {
                conformance::run_all(&target, seed + round, 1000);
            }
            drop(ends);
            killer.join().unwrap()
        });
        println!("{killed} kills");
        assert!(killed > 5);
        drop(stops);
        changing.join().unwrap()
    });
    println!("{removed} requests to empty a member were answered, {added} to add one");
    let stats = mounted.stats();
    assert_eq!(stats["errors"]["checksum"], 0);
    assert_eq!(stats["heap_allocations_on_io_path"], 0);
    mounted.unmount();
}

#[test]
fn a_removal_goes_on_after_the_worker_was_killed() {
    skip_if!(cannot_guard());
    let folder = folder();
    let filled = Filled::new(folder.path(), None);
    filled.wait_for_pages_on(2);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| filled.remove(2, Some(256 << 10)));
        wait_until("it has begun", || filled.orders().1 == Some(2));
        filled.kill_worker();
        assert!(asked.join().unwrap().is_err(), "whoever was to answer is dead");
    });
    assert_eq!(filled.orders(), (vec![1, 2], Some(2)), "its successor goes on");
    filled.check();
    filled.kill_worker();
    assert_eq!(filled.orders().1, Some(2));
    // As slow as that is, it takes too long for a test.
    filled.socket.ask(&Request::Cancel).unwrap();
    wait_until("it takes pages again", || filled.tier(2)["state"] == "ok");
    filled.remove(2, None).unwrap();
    assert_eq!(filled.orders(), (vec![1], None));
    filled.check();
    filled.kill_worker();
    assert_eq!(filled.orders().0, [1]);
    filled.check();
    // Nobody holds it any more.
    let path = &filled.formatted.members[1];
    wait_until("its image is free", || Image::open_exclusive(path, Access::ReadWrite).is_ok());
    filled.end();
}

#[test]
fn a_member_that_was_added_is_its_successors_too() {
    skip_if!(cannot_guard());
    let folder = folder();
    let filled = Filled::new(folder.path(), None);
    filled.remove(1, None).unwrap();
    for _ in 0..3 {
        filled.add(1).unwrap();
        filled.write();
        filled.wait_for_pages_on(1);
        filled.kill_worker();
        assert_eq!(filled.orders().0, [1, 2]);
        filled.check();
        filled.remove(1, None).unwrap();
        assert_eq!(filled.orders().0, [2]);
        filled.check();
    }
    filled.add(1).unwrap();
    drop(filled.file);
    filled.mounted.unmount();
    // The next mount finds them as they are now.
    let again = Mounted::existing(&programs(), &filled.formatted.image, "");
    let filled = Filled::on(again, filled.formatted);
    assert_eq!(filled.orders().0, [1, 2]);
    filled.check();
    filled.end();
}

/// The worker dies between any two steps: each time it is asked for the same, whoever takes over.
#[test]
fn killed_while_a_member_comes_or_goes() {
    skip_if!(cannot_guard());
    for point in ["TierHeld", "TierAdded", "TierWithdrawn"] {
        println!("{point}");
        let folder = folder();
        let filled = Filled::new(folder.path(), Some(("SWAPFS_KILL_AT", point)));
        filled.wait_for_pages_on(2);
        let before = filled.mounted.number("worker_pid");
        let removed = filled.remove(2, None);
        if point == "TierWithdrawn" {
            assert!(removed.is_err());
            wait_until("a successor", || filled.mounted.number("worker_pid") != before);
        } else {
            removed.unwrap();
            for _ in 0..3 {
                let before = filled.mounted.number("worker_pid");
                let why = filled.add(2).unwrap_err();
                assert!(why.starts_with("control socket"), "it was refused: {why}");
                wait_until("a successor", || filled.mounted.number("worker_pid") != before);
                filled.check();
                // It is a member from the moment that it may be held, and is looked for if it is not.
                assert_eq!(filled.orders().0, [1, 2]);
                wait_until("it can be used", || filled.tier(2)["state"] == "ok");
                let why = filled.add(2).unwrap_err();
                assert!(why.contains("is tier 2 already"), "{why}");
                filled.write();
                filled.wait_for_pages_on(2);
                filled.check();
                filled.remove(2, None).unwrap();
            }
        }
        assert_eq!(filled.orders().0, [1]);
        filled.check();
        if point == "TierWithdrawn" {
            let path = &filled.formatted.members[1];
            let is_free = || Image::open_exclusive(path, Access::ReadWrite).is_ok();
            wait_until("its image is free", is_free);
            filled.add(2).unwrap();
            filled.check();
        }
        filled.end();
    }
}

/// A member whose file was cut off: its pages are lost, with errors, and nothing else is.
#[test]
fn a_member_that_fails() {
    skip_if!(cannot_guard());
    let folder = folder();
    let filled = Filled::new(folder.path(), None);
    filled.wait_for_pages_on(2);
    let member = File::options().write(true).open(&filled.formatted.members[1]).unwrap();
    let bytes = member.metadata().unwrap().len();
    member.set_len(4096).unwrap();
    let mut lost = Vec::new();
    let mut page = [0; PAGE_LEN];
    for (slot, expected) in (2u64..).zip(filled.pages.chunks(PAGE_LEN)) {
        match filled.file.read_exact_at(&mut page, slot * 4096) {
            Ok(()) => assert!(page == *expected, "slot {slot} has another page"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "slot {slot}");
                lost.push(slot);
            }
        }
    }
    let tier = filled.tier(2);
    println!("{} of {PAGES} pages are lost; {tier}", lost.len());
    assert!(!lost.is_empty() && (lost.len() as u64) < PAGES);
    assert_ne!(tier["read_errors"], 0);
    // It comes back empty, and what was lost is written again.
    member.set_len(bytes).unwrap();
    wait_until("it is used again", || filled.tier(2)["state"] == "ok");
    filled.write();
    filled.kill_worker();
    filled.check();
    filled.remove(2, None).unwrap();
    filled.check();
    drop(filled.file);
    filled.mounted.unmount();
}

#[test]
fn a_missing_member_and_all_pages_dropped() {
    skip_if!(cannot_guard());
    let folder = folder();
    let formatted = format(folder.path());
    let away = folder.path().join("away");
    let elsewhere = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::rename(&formatted.members[0], elsewhere.path().join("away")).unwrap();
    let mountpoint = folder.path().join("image.mnt");
    fs::create_dir(&mountpoint).unwrap();
    let message = programs().fail("swapfsd", &[&formatted.image, &mountpoint], 1);
    assert!(message.contains("member 1") && message.contains("degraded=on"), "{message}");
    let mounted = Mounted::existing(&programs(), &formatted.image, "degraded=on");
    let filled = Filled::on(mounted, formatted.clone());
    filled.wait_for_pages_on(2);
    filled.kill_worker();
    filled.check();
    // Not shown as long as it is missing since the mount.
    assert!(filled.tier(1).is_null() || filled.tier(1)["state"] == "missing");
    // All pages are forgotten.
    filled.socket.ask(&Request::Drop).unwrap();
    let mut found = vec![1; filled.pages.len()];
    filled.file.read_exact_at(&mut found, 8192).unwrap();
    assert!(found.iter().all(|byte| *byte == 0), "there are pages");
    // The swap header may lie there.
    assert!(filled.tier(2)["pages"].as_u64() <= Some(1));
    filled.write();
    filled.check();
    filled.end();
    // It is there again.
    fs::rename(elsewhere.path().join("away"), &away).unwrap();
    let again = Mounted::existing(&programs(), &formatted.image, "");
    let filled = Filled::on(again, formatted);
    assert_eq!(filled.orders().0, [1, 2]);
    filled.check();
    filled.end();
}
