//! Members on servers elsewhere: objects, and blocks where a write may arrive late.

use super::*;
use crate::backend::{Completion, CompletionSink};
use crate::buffer::PageBuffer;
use crate::error::{Error, Operation};
use crate::remote::Key;
use std::collections::HashMap;

/// A server of objects that is nothing but a map, and can be made to fail or lie.
#[derive(Debug, Default)]
pub(super) struct Server {
    objects: Mutex<HashMap<(u64, Key), Vec<u8>>>,
    run: AtomicU64,
    fails: AtomicBool,
    /// What is put is stored, and refused all the same.
    refuses_late: AtomicBool,
    /// Answers wait until this ends.
    stalls: AtomicBool,
    puts: AtomicU64,
}

/// Its address.
#[derive(Debug)]
pub(super) struct Address(pub(super) Arc<Server>);

impl Opens for Address {
    fn open(&self, run: u64) -> io::Result<Arc<dyn ObjectStore>> {
        Ok(Arc::new(Opened { server: Arc::clone(&self.0), run }))
    }
}

#[derive(Debug)]
struct Opened {
    server: Arc<Server>,
    run: u64,
}

impl Opened {
    fn answers(&self) -> std::result::Result<(), i32> {
        self.server.run.store(self.run, Ordering::SeqCst);
        let until = remote::end_of(Duration::from_secs(1));
        while self.server.stalls.load(Ordering::SeqCst) {
            if Instant::now() >= until {
                return Err(libc::ETIMEDOUT);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        match self.server.fails.load(Ordering::SeqCst) {
            true => Err(libc::ECONNREFUSED),
            false => Ok(()),
        }
    }
}

impl ObjectStore for Opened {
    fn put(&self, objects: &[(Key, &[u8])]) -> std::result::Result<(), i32> {
        self.answers()?;
        let mut all = self.server.objects.lock();
        for (key, stored) in objects {
            let before = all.insert((self.run, *key), stored.to_vec());
            assert!(before.is_none_or(|before| before == *stored), "a key was used again");
        }
        self.server.puts.fetch_add(objects.len() as u64, Ordering::SeqCst);
        match self.server.refuses_late.load(Ordering::SeqCst) {
            true => Err(libc::ETIMEDOUT),
            false => Ok(()),
        }
    }

    fn get(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) -> std::result::Result<(), i32> {
        self.answers()?;
        for (index, key) in keys.iter().enumerate().rev() {
            let stored = self.server.objects.lock().get(&(self.run, *key)).cloned();
            each(index, stored.as_deref());
        }
        Ok(())
    }

    fn remove(&self, keys: &[Key]) -> std::result::Result<(), i32> {
        self.answers()?;
        let mut all = self.server.objects.lock();
        for key in keys {
            all.remove(&(self.run, *key));
        }
        Ok(())
    }

    fn check(&self) -> std::result::Result<(), i32> {
        self.answers()
    }

    fn clear(&self, below: Option<u64>) -> std::result::Result<u64, i32> {
        self.answers()?;
        let mut all = self.server.objects.lock();
        let before = all.len();
        all.retain(|(run, key), _| {
            *run != self.run || below.is_some_and(|below| key.number >= below)
        });
        Ok((before - all.len()) as u64)
    }

    fn statistics(&self, _: &mut dyn FnMut(&'static str, u64)) {}
}

const REDIS: &str = "url=redis://there,capacity=64M";

fn on_server(top_bytes: u64, options: &str) -> Fixture {
    Fixture::new(3000, top_bytes, &[(MemberKind::Remote, 64 << 20, options)])
}

#[test]
fn pages_go_to_a_server_and_come_back() {
    let fixture = on_server(2 << 20, &format!("{REDIS},promote=always"));
    let (mut model, mut random) = (Model::new(3000), Random(7));
    {
        let tier = fixture.open(false);
        model.change(&tier, &mut random, 8000);
        model.check_all(&tier, "at first");
        assert!(fixture.server.puts.load(Ordering::SeqCst) > 500);
        // As many are there as entries name, when what is not needed was removed.
        wait_until("what nobody needs is removed", || {
            let there = fixture.server.objects.lock().len() as u64;
            there == member_at(&tier, 1).counters.pages.load(Ordering::Relaxed)
        });
        assert_eq!(number(&tier, "demotion_decompressions"), 0);
    }
    // A successor goes on, with numbers that nobody has had.
    let tier = fixture.open(true);
    model.check_all(&tier, "after a take-over");
    model.change(&tier, &mut random, 8000);
    model.check_all(&tier, "of the successor");
    tier.discard(0, 3000).unwrap();
    wait_until("nothing is left", || fixture.server.objects.lock().is_empty());
    assert_eq!(member_at(&tier, 1).space.live_bytes(), 0);
}

#[test]
fn an_orderly_end_leaves_nothing_on_the_server() {
    let fixture = on_server(2 << 20, REDIS);
    let tier = fixture.open(false);
    Model::new(3000).change(&tier, &mut Random(3), 6000);
    wait_until("some are there", || !fixture.server.objects.lock().is_empty());
    tier.close().unwrap();
    assert!(fixture.server.objects.lock().is_empty());
}

#[test]
fn a_server_that_is_gone_costs_its_pages_and_no_others() {
    let fixture = on_server(4 << 20, &format!("{REDIS},promote=never"));
    let tier = fixture.open(false);
    let mut model = Model::new(3000);
    for slot in 0..3000 {
        model.0[slot as usize] = Some(slot * 8 + 3);
        tier.write(slot, &page_of(slot * 8 + 3)).unwrap();
    }
    wait_until("it stands still", || !tier.lower.is_top_full(tier.store()));
    // Some are in memory, whatever went.
    for slot in 0..50 {
        tier.write(slot, &page_of(slot * 8 + 3)).unwrap();
    }
    fixture.server.fails.store(true, Ordering::SeqCst);
    let (mut wrong, mut lost) = (0, 0);
    for slot in 0..3000 {
        match read(&tier, slot) {
            Ok(page) => wrong += u64::from(page != page_of(slot * 8 + 3)),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Io);
                lost += 1;
            }
        }
    }
    assert!(wrong == 0 && lost > 100 && lost < 3000, "{lost} lost");
    assert_eq!(member_at(&tier, 1).state().name(), "failed");
    // The top takes what it has room for.
    tier.write(5, &page_of(99)).unwrap();
    model.0[5] = Some(99);
    fixture.server.fails.store(false, Ordering::SeqCst);
    wait_until("it is used again", || member_at(&tier, 1).state().name() == "ok");
    model.check_all(&tier, "when it is back");
}

#[test]
fn what_arrives_though_it_was_refused_is_nobodys() {
    let fixture = on_server(2 << 20, REDIS);
    let tier = fixture.open(false);
    let (mut model, mut random) = (Model::new(1500), Random(5));
    for round in 0..6 {
        fixture.server.refuses_late.store(round % 2 == 0, Ordering::SeqCst);
        for _ in 0..200 {
            let (slot, key) = (random.below(1500), 1 + random.below(1 << 40));
            if tier.write(slot, &page_of(key)).is_ok() {
                model.0[slot as usize] = Some(key);
            }
        }
        model.check_all(&tier, "while puts fail late");
    }
    fixture.server.refuses_late.store(false, Ordering::SeqCst);
    wait_until("what is nobody's is removed", || {
        let there = fixture.server.objects.lock().len() as u64;
        there == member_at(&tier, 1).counters.pages.load(Ordering::Relaxed)
    });
    model.check_all(&tier, "in the end");
}

#[test]
fn another_objects_bytes_are_not_taken() {
    let fixture = on_server(2 << 20, &format!("{REDIS},promote=never"));
    let tier = fixture.open(false);
    for slot in 0..1500 {
        tier.write(slot, &page_of(slot * 8 + 5)).unwrap();
    }
    wait_until("some are there", || fixture.server.objects.lock().len() > 100);
    wait_until("it stands still", || !tier.lower.is_top_full(tier.store()));
    {
        // Each object's bytes go to another key; one is shortened, one is gone.
        let mut all = fixture.server.objects.lock();
        let mut values: Vec<Vec<u8>> = all.values().cloned().collect();
        values.rotate_left(1);
        for (index, (stored, value)) in all.values_mut().zip(values).enumerate() {
            match index % 3 {
                0 => *stored = value,
                1 => stored.truncate(stored.len() - 1),
                _ => stored[30] ^= 1,
            }
        }
    }
    let elsewhere: Vec<u64> = (0..1500).filter(|&slot| tier_of(&tier, slot) == 1).collect();
    assert!(elsewhere.len() > 100);
    for slot in 0..1500 {
        match read(&tier, slot) {
            Ok(page) => assert!(page == page_of(slot * 8 + 5), "slot {slot}"),
            Err(_) => assert!(elsewhere.contains(&slot)),
        }
    }
    let wrong = number(&tier, "remote_wrong_objects") + number(&tier, "remote_lost_objects");
    assert!(wrong > 0);
}

/// Pages in memory are read while the server stalls, whoever waits for it.
#[test]
fn a_server_that_stalls_does_not_stop_the_others() {
    let fixture = on_server(4 << 20, &format!("{REDIS},promote=never"));
    let tier = fixture.open(false).shared().unwrap();
    for slot in 0..3000 {
        tier.write(slot, &page_of(slot * 8 + 3)).unwrap();
    }
    wait_until("it stands still", || !tier.lower.is_top_full(tier.store()));
    for slot in 0..50 {
        tier.write(slot, &page_of(slot * 8 + 3)).unwrap();
    }
    let (above, below): (Vec<u64>, Vec<u64>) =
        (0..3000).partition(|&slot| tier_of(&tier, slot) == 0);
    assert!(above.len() > 10 && below.len() > 10, "{} above", above.len());
    fixture.server.stalls.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| read(&tier, below[0]));
        while tier.lower.threads_waiting() == 0 {
            std::thread::yield_now();
        }
        assert!(tier.asynchronous().unwrap().is_worth_starting(PAGE_LEN));
        let (told, outcomes) = std::sync::mpsc::channel();
        for &slot in below[1..4].iter().chain(&above[..8]) {
            let sink = Arc::new(Told(Mutex::new(told.clone())));
            let failed = Error::new(ErrorKind::Io, Operation::Read, slot);
            let buffer = tier.buffers.take(PAGE_LEN);
            let done = Completion::new(sink, slot, failed);
            tier.asynchronous().unwrap().start_read(slot, buffer, done);
        }
        // Those in memory are there already.
        for _ in 0..8 {
            let (slot, page) = outcomes.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(above.contains(&slot) && page.unwrap() == page_of(slot * 8 + 3));
        }
        fixture.server.stalls.store(false, Ordering::SeqCst);
        for _ in 0..3 {
            let (slot, page) = outcomes.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(page.is_err() || page.unwrap() == page_of(slot * 8 + 3));
        }
        let _ = waiting.join().unwrap();
    });
}

struct Told(Mutex<Sender<(u64, Result<Vec<u8>>)>>);

impl CompletionSink for Told {
    fn complete(&self, token: u64, result: Result<PageBuffer>) {
        let _ = self.0.lock().send((token, result.map(|buffer| buffer.to_vec())));
    }
}

/// A write that failed on a server may arrive later: what is put there next must not be hit.
#[test]
fn room_where_something_may_still_arrive_is_not_used() {
    for options in ["url=nbd://there,layout=linear", "url=nbd://there,layout=log"] {
        let fixture = Fixture::new(3000, 2 << 20, &[(MemberKind::Remote, 32 << 20, options)]);
        let tier = fixture.open(false);
        let member = member_at(&tier, 1);
        let memory = Arc::clone(&fixture.devices[0].0);
        memory.fail_writes.store(true, Ordering::SeqCst);
        memory.errno.store(libc::ETIMEDOUT, Ordering::SeqCst);
        for slot in 0..3000 {
            let _ = tier.write(slot, &page_of(slot * 8 + 3));
        }
        wait_until("a write has failed", || member.doubts.len() > 0);
        wait_until("it is left alone", || member.state().name() == "failed");
        let doubtful = member.space.live_bytes();
        assert!(doubtful >= 64 << 10, "{doubtful}");
        memory.fail_writes.store(false, Ordering::SeqCst);
        drop(member);
        drop(tier);
        // A successor knows of it.
        let tier = fixture.open(true);
        let member = member_at(&tier, 1);
        assert!(member.doubts.len() > 0, "{options}");
        assert!(member.space.live_bytes() >= 64 << 10, "{options}");
        member.end_old_doubts(Duration::ZERO);
        assert_eq!(member.doubts.len(), 0);
        tier.discard(0, 3000).unwrap();
        wait_until("all of it is free", || member.space.live_bytes() == 0);
        let (mut model, mut random) = (Model::new(3000), Random(11));
        model.change(&tier, &mut random, 5000);
        model.check_all(&tier, "afterwards");
    }
}
