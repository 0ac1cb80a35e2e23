//! Servers that do not lie, by the same scripts: when they are connected to, with which export, and
//! what an error says of what may still happen.

use super::{DEADLINE_MS, PAGE, Peer, SLACK, answering, server};
use crate::backend::device::BlockDevice;
use crate::remote::nbd::protocol::errno_of;
use crate::remote::nbd::tests::{Pages, number, settings, superblock};
use crate::remote::nbd::{NbdDevice, NbdSettings, as_answer, as_trouble, may_still_happen};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::remote::NbdPlace;
use uuid::Uuid;

const OURS: Uuid = Uuid::from_u128(7);
const OTHER: Uuid = Uuid::from_u128(8);

/// An honest server with the superblock of `stub`, which counts its connections.
fn counting(stub: Uuid) -> (NbdPlace, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let place = server(move |mut peer, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        peer.shake_hands(true, 1 << 20);
        serve(&mut peer, &superblock(stub), |_| true);
    });
    (place, connections)
}

/// Answers requests, with `first` as the first page and nines behind it, as long as `goes_on` says
/// so of their kind; a read of the first page is not asked about.
fn serve(peer: &mut Peer, first: &[u8; PAGE], goes_on: impl Fn(u16) -> bool) {
    while let Some(asked) = peer.asked() {
        if (asked.kind, asked.offset) == (0, 0) {
            let offset = asked.offset.to_be_bytes();
            peer.chunk(super::DONE, super::DATA, asked.cookie, &[&offset, first]);
        } else if goes_on(asked.kind) {
            peer.honest(asked, 9);
        } else {
            return;
        }
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_only_stands_by_has_no_connection() {
    type Call = fn(&NbdDevice) -> Result<(), i32>;
    let calls: [(&str, Call); 5] = [
        ("read", |device| device.read_at(&mut [0; PAGE], 8192)),
        ("write", |device| device.write_at(&[0; PAGE], 8192)),
        ("discard", |device| device.discard(8192, 4096).map(drop)),
        ("flush", |device| device.flush()),
        ("lock", |device| device.lock().map_err(|error| error.raw_os_error().unwrap_or(-1))),
    ];
    let (place, connections) = counting(OURS);
    let of = |stub| NbdSettings { stub, ..settings(place.clone(), DEADLINE_MS) };
    let devices: Vec<_> =
        [Some(OURS), None].map(|stub| calls.map(|_| NbdDevice::later(of(stub), 0).unwrap())).into();
    let never = NbdDevice::later(of(Some(OURS)), 1 << 20).unwrap();
    // For longer than the deadline, which begins with the first call.
    thread::sleep(Duration::from_millis(DEADLINE_MS + 200));
    assert!(!never.is_connected() && never.size_bytes() == 1 << 20 && never.connections() == 0);
    assert_eq!(number(&never, "nbd_connects") + number(&never, "nbd_failed_connects"), 0);
    assert_eq!(connections.load(Ordering::Relaxed), 0);
    for devices in &devices {
        for (device, (name, call)) in devices.iter().zip(calls) {
            assert_eq!(call(device), Ok(()), "{name}");
            assert!(device.is_connected(), "{name}");
        }
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2 * calls.len());
    // Its thread ends with it, though it has never had anything to do.
    let shared = Arc::downgrade(&never.shared);
    drop(never);
    until("the thread does not end", || shared.strong_count() == 0);
    drop(devices);
    assert_eq!(connections.load(Ordering::Relaxed), 2 * calls.len());
}

#[test]
fn another_export_is_not_used() {
    let strange = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&strange);
    // Ours, until something is written; then what is not ours; then ours again.
    let place = server(move |mut peer, index| {
        let size_bytes = if index == 3 { 0 } else { 1 << 20 };
        peer.shake_hands(true, size_bytes);
        match index {
            0 => serve(&mut peer, &superblock(OURS), |kind| kind != 1),
            4.. => serve(&mut peer, &superblock(OURS), |_| true),
            _ => {
                let first = if index == 1 { superblock(OTHER) } else { [0; PAGE] };
                serve(&mut peer, &first, |kind| {
                    // Other than taking leave.
                    counted.fetch_add(usize::from(kind != 2), Ordering::Relaxed);
                    false
                });
            }
        }
    });
    let (connections, stub) = (Some(1), Some(OURS));
    let wanted = NbdSettings { connections, stub, ..settings(place, 3000) };
    let device = NbdDevice::new(wanted).unwrap();
    let mut page = Pages([0u8; PAGE]);
    device.read_at(&mut page.0, 8192).unwrap();
    let errno = device.write_at(&page.0, 8192).unwrap_err();
    assert!(may_still_happen(errno), "{errno}");
    page.0.fill(0);
    device.read_at(&mut page.0, 8192).unwrap();
    assert!(page.0.iter().all(|&byte| byte == 9));
    assert_eq!(number(&device, "nbd_failed_connects"), 3);
    assert_eq!(number(&device, "nbd_connects"), 2);
    assert_eq!(strange.load(Ordering::Relaxed), 0);
}

#[test]
fn another_export_from_the_start() {
    let (place, _) = counting(OTHER);
    let of = |stub| NbdSettings { stub, ..settings(place.clone(), DEADLINE_MS) };
    let error = NbdDevice::new(of(Some(OURS))).unwrap_err();
    let text = "another export is there now: not formatted for this image";
    assert!(error.to_string().contains(text), "{error}");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    let device = NbdDevice::later(of(Some(OURS)), 1 << 20).unwrap();
    assert_eq!(device.write_at(&[0; PAGE], 8192), Err(libc::EINVAL));
    assert!(!device.is_connected());
    NbdDevice::new(of(Some(OTHER))).unwrap();
    NbdDevice::new(of(None)).unwrap();
}

#[test]
fn who_does_not_say_which_export_it_is_is_not_waited_for() {
    let place = server(|mut peer, _| {
        peer.shake_hands(true, 1 << 20);
        while peer.asked().is_some() {}
    });
    let wanted = NbdSettings { stub: Some(OURS), ..settings(place, DEADLINE_MS) };
    let started = Instant::now();
    let error = NbdDevice::new(wanted).unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(DEADLINE_MS) + SLACK);
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn what_may_still_happen_and_what_has_been_answered() {
    for error in 0..300 {
        let errno = as_answer(errno_of(error));
        assert!(!may_still_happen(errno), "{error}");
        assert!(may_still_happen(as_trouble(error as i32)), "{error}");
    }
    for errno in [libc::EIO, libc::ENOSPC, libc::EPERM, libc::EINVAL, libc::ENOMEM] {
        assert_eq!(as_answer(errno), errno);
    }
    for errno in [libc::ETIMEDOUT, libc::ECONNREFUSED, libc::EPROTO, libc::ESHUTDOWN] {
        assert_eq!((as_answer(errno), as_trouble(errno)), (libc::EIO, errno));
    }
    // The server says it: 108 is ESHUTDOWN, for which it is asked again, and 110 and 104 are
    // none of the protocol's.
    for (error, expected) in
        [(5, libc::EIO), (28, libc::ENOSPC), (1, libc::EPERM), (110, libc::EINVAL)]
            .into_iter()
            .chain([(104, libc::EINVAL), (108, libc::EIO)])
    {
        let device = answering(move |peer, asked| peer.simple(error, asked.cookie, &[]));
        assert_eq!(device.write_at(&[0; PAGE], 0), Err(expected), "{error}");
        assert_eq!(device.discard(0, 4096), Err(expected), "{error}");
        assert_eq!(number(&device, "nbd_connects"), 1);
    }
    // It does not.
    for closes in [true, false] {
        let device = answering(move |peer, _| {
            if closes {
                let _ = peer.0.shutdown(std::net::Shutdown::Both);
            }
        });
        let outcomes = [device.write_at(&[0; PAGE], 0), device.discard(0, 4096).map(drop)];
        assert!(outcomes.iter().all(|outcome| outcome.is_err_and(may_still_happen)));
    }
}
