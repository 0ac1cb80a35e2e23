//! nbdkit and qemu-nbd, as Debian has them.

use super::server::Server;
use super::{Pages, Random, number, settings};
use crate::backend::device::BlockDevice;
use crate::remote::nbd::{NbdDevice, NbdSettings};
use crate::sys::file::Discarded;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::remote::NbdPlace;
use swapfs_format::superblock::PRIMARY_OFFSET_BYTES;
use uuid::Uuid;

const PAGE: usize = 4096;

fn fill(buffer: &mut [u8], page: u64, version: u64) {
    for (index, part) in buffer.chunks_mut(8).enumerate() {
        let word = (page << 40) ^ (version << 16) ^ index as u64;
        part.copy_from_slice(&word.to_le_bytes());
    }
}

/// Several threads, each with places of its own: all that is read is what was written. Threads
/// stop when `until` has come. Counts requests that failed; what a failed write leaves is not
/// looked at until the place is written again.
fn torture(device: &NbdDevice, threads: u64, rounds: u64, may_fail: bool) -> u64 {
    const SLOTS: u64 = 24;
    const SLOT_PAGES: u64 = 4;
    let failures = AtomicU64::new(0);
    thread::scope(|scope| {
        for me in 0..threads {
            let failures = &failures;
            scope.spawn(move || {
                let mut random = Random(me + 1);
                let mut versions = [Some(0u64); SLOTS as usize];
                let mut expected = Box::new(Pages([0u8; SLOT_PAGES as usize * PAGE]));
                let mut found = expected.clone();
                for round in 1..=rounds {
                    let slot = random.below(SLOTS);
                    let length = (1 + random.below(SLOT_PAGES)) as usize * PAGE;
                    let first = (me * SLOTS + slot) * SLOT_PAGES;
                    let offset = first * PAGE as u64;
                    let known = &mut versions[slot as usize];
                    let outcome = match random.below(10) {
                        0..4 => {
                            for (index, page) in expected.0.chunks_mut(PAGE).enumerate() {
                                fill(page, first + index as u64, round);
                            }
                            let written = device.write_at(&expected.0, offset);
                            *known = written.is_ok().then_some(round);
                            written
                        }
                        4 => {
                            let zeros = Pages([0u8; SLOT_PAGES as usize * PAGE]);
                            let outcome = device
                                .discard(offset, zeros.0.len() as u64)
                                .and_then(|_| device.write_at(&zeros.0, offset));
                            *known = outcome.is_ok().then_some(0);
                            outcome
                        }
                        5 if round % 16 == 0 => device.flush(),
                        _ => {
                            let read = device.read_at(&mut found.0[..length], offset);
                            if let (Ok(()), Some(version)) = (read, *known) {
                                for (index, page) in expected.0.chunks_mut(PAGE).enumerate() {
                                    fill(page, first + index as u64, version);
                                }
                                if version == 0 {
                                    expected.0.fill(0);
                                }
                                assert!(found.0[..length] == expected.0[..length], "wrong bytes");
                            }
                            read
                        }
                    };
                    if let Err(errno) = outcome {
                        assert!(may_fail, "errno {errno}");
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failures.into_inner()
}

fn conform(server: Option<Server>, rounds: u64) {
    let Some(server) = server else { return };
    let device = NbdDevice::new(settings(server.place.clone(), 20_000)).unwrap();
    assert_eq!(device.size_bytes(), 64 << 20);
    assert!(device.is_connected() && !device.is_read_only());
    device.lock().unwrap();
    torture(&device, 6, rounds, false);
    let mut large = vec![1u8; 8 << 20];
    for (index, page) in large.chunks_mut(PAGE).enumerate() {
        fill(page, index as u64, 77);
    }
    device.write_at(&large, 32 << 20).unwrap();
    let mut found = vec![0u8; 8 << 20];
    device.read_at(&mut found, 32 << 20).unwrap();
    assert!(found == large, "wrong bytes of a large request");
    let discarded = device.discard(32 << 20, 8 << 20).unwrap();
    assert_eq!(discarded == Discarded::Yes, device.can_trim());
    device.flush().unwrap();
    assert_eq!(device.read_at(&mut found, 60 << 20), Err(libc::EINVAL));
    assert_eq!(device.read_at(&mut found, u64::MAX - 4095), Err(libc::EINVAL));
    assert_eq!(number(&device, "nbd_protocol_errors"), 0);
    assert_eq!(number(&device, "nbd_retries"), 0);
    assert_eq!(number(&device, "nbd_timeouts"), 0);
}

#[test]
fn nbdkit_memory() {
    conform(Server::nbdkit(&["memory", "64M"]), 600);
}

#[test]
fn nbdkit_without_structured_replies() {
    conform(Server::nbdkit(&["--no-sr", "memory", "64M"]), 400);
}

#[test]
fn nbdkit_over_a_unix_socket() {
    conform(Server::nbdkit_unix(&["memory", "64M"]), 400);
}

#[test]
fn nbdkit_with_filters() {
    conform(Server::nbdkit(&["--filter=noparallel", "memory", "64M"]), 300);
    let policy = ["blocksize-minimum=4096", "blocksize-preferred=16K", "blocksize-maximum=64K"];
    let mut sizes = vec!["--filter=blocksize-policy", "memory", "64M"];
    sizes.extend(policy);
    sizes.push("blocksize-error-policy=error");
    conform(Server::nbdkit(&sizes), 300);
    let slow = ["--filter=delay", "memory", "64M", "rdelay=2ms", "wdelay=2ms"];
    conform(Server::nbdkit(&slow), 100);
    conform(Server::nbdkit(&["--filter=rate", "memory", "64M", "rate=2G"]), 100);
}

#[test]
fn nbdkit_with_a_file() {
    let directory = super::server::directory();
    let path = directory.path().join("file");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    conform(Server::nbdkit(&["file", path.to_str().unwrap()]), 300);
}

#[test]
fn qemu() {
    conform(Server::qemu(64 << 20, &["-e", "4", "--discard=unmap"]), 300);
    conform(Server::qemu(64 << 20, &["-e", "1"]), 100);
}

#[test]
fn errors_of_the_server_are_errors_here_and_nothing_else_suffers() {
    let arguments = ["--filter=error", "memory", "64M", "error=ENOSPC", "error-rate=20%"];
    let Some(server) = Server::nbdkit(&arguments) else { return };
    let device = NbdDevice::new(settings(server.place.clone(), 20_000)).unwrap();
    assert!(torture(&device, 4, 300, true) > 20);
    assert_eq!(number(&device, "nbd_protocol_errors"), 0);
    assert_eq!(number(&device, "nbd_connects"), device.connections() as u64);
}

#[test]
fn several_connections_where_the_server_allows_them() {
    let Some(server) = Server::nbdkit(&["memory", "64M"]) else { return };
    let wanted =
        |connections| NbdSettings { connections, ..settings(server.place.clone(), 20_000) };
    for (connections, count) in [(None, 4), (Some(2), 2), (Some(7), 7)] {
        let device = NbdDevice::new(wanted(connections)).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while device.connections() < count && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(device.connections(), count);
    }
    let Some(server) =
        Server::nbdkit(&["--filter=multi-conn", "memory", "64M", "multi-conn-mode=disable"])
    else {
        return;
    };
    let device = NbdDevice::new(settings(server.place.clone(), 20_000)).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(device.connections(), 1);
}

#[test]
fn who_is_not_there_and_what_is_not_there() {
    let nobody = NbdPlace::Tcp("127.0.0.1".to_owned(), 1);
    let error = NbdDevice::new(settings(nobody, 2000)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains("nbd://127.0.0.1:1/"), "{error}");
    let nobody = NbdPlace::Unix("/var/tmp/there-is-no-such-socket".to_owned());
    let error = NbdDevice::new(settings(nobody, 2000)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    let Some(server) = Server::qemu(1 << 20, &["-x", "the-one"]) else { return };
    let export = "another".to_owned();
    let wrong = NbdSettings { export, ..settings(server.place.clone(), 5000) };
    let error = NbdDevice::new(wrong).unwrap_err().to_string();
    assert!(error.contains("no export 'another'; there are: 'the-one'"), "{error}");
    let export = "the-one".to_owned();
    NbdDevice::new(NbdSettings { export, ..settings(server.place.clone(), 5000) }).unwrap();
}

#[test]
fn a_server_with_blocks_that_are_too_large_is_refused() {
    let sizes = ["blocksize-minimum=8192", "blocksize-preferred=8192", "blocksize-maximum=1M"];
    let arguments = [&["--filter=blocksize-policy", "memory", "64M"][..], &sizes].concat();
    let Some(server) = Server::nbdkit(&arguments) else { return };
    let error = NbdDevice::new(settings(server.place.clone(), 5000)).unwrap_err().to_string();
    assert!(error.contains("smallest block is 8192"), "{error}");
}

#[test]
fn a_server_that_needs_too_long() {
    let Some(server) = Server::nbdkit(&["--filter=delay", "memory", "64M", "rdelay=3"]) else {
        return;
    };
    let device = NbdDevice::new(settings(server.place.clone(), 500)).unwrap();
    let mut buffer = Pages([7u8; PAGE]);
    let started = Instant::now();
    assert_eq!(device.read_at(&mut buffer.0, 0), Err(libc::ETIMEDOUT));
    assert!((450..1000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    thread::sleep(Duration::from_secs(3));
    assert!(buffer.0.iter().all(|&byte| byte == 7), "written to after the call");
    device.write_at(&buffer.0, 0).unwrap();
}

#[test]
fn a_server_that_is_killed_and_started_again_under_load() {
    let directory = super::server::directory();
    let path = directory.path().join("file");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let Some(mut server) = Server::nbdkit(&["file", path.to_str().unwrap()]) else { return };
    let device = NbdDevice::new(settings(server.place.clone(), 5000)).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut failures = 0;
            while !stop.load(Ordering::Relaxed) {
                failures += torture_again(&device);
            }
            failures
        });
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(400));
            server.kill();
            thread::sleep(Duration::from_millis(300));
            server.start_again();
        }
        thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        println!("{} requests failed", load.join().unwrap());
    });
    assert!(number(&device, "nbd_connects") >= 5);
    assert_eq!(number(&device, "nbd_timeouts"), 0);
    let mut page = Pages([3u8; PAGE]);
    device.write_at(&page.0, 0).unwrap();
    page.0.fill(0);
    device.read_at(&mut page.0, 0).unwrap();
    assert!(page.0.iter().all(|&byte| byte == 3));
    // Gone for good: at first requests wait, then they fail at once.
    server.kill();
    drop(server);
    let started = Instant::now();
    assert_eq!(device.read_at(&mut page.0, 0), Err(libc::ECONNREFUSED));
    assert!((4500..12000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    let started = Instant::now();
    assert_eq!(device.write_at(&page.0, 0), Err(libc::ECONNREFUSED));
    assert!(started.elapsed() < Duration::from_millis(3000));
}

/// Begins with zeros everywhere, as [`torture`] expects.
fn torture_again(device: &NbdDevice) -> u64 {
    let zeros = vec![0u8; 4 << 20];
    if device.write_at(&zeros, 0).is_err() {
        return 1;
    }
    torture(device, 6, 200, true)
}

#[test]
fn a_server_that_is_restarted_while_nothing_happens_costs_not_even_a_write() {
    let Some(mut server) = Server::nbdkit(&["memory", "64M"]) else { return };
    let device = NbdDevice::new(settings(server.place.clone(), 5000)).unwrap();
    let page = Pages([3u8; PAGE]);
    for _ in 0..3 {
        device.write_at(&page.0, 0).unwrap();
        server.kill();
        thread::sleep(Duration::from_millis(100));
        assert!(!device.is_connected());
        server.start_again();
    }
    device.write_at(&page.0, 0).unwrap();
    assert_eq!(number(&device, "nbd_errors"), 0);
}

#[test]
fn later_needs_no_server_until_it_is_used_and_an_export_must_not_shrink() {
    let Some(mut server) = Server::nbdkit(&["memory", "64M"]) else { return };
    server.kill();
    let device = NbdDevice::later(settings(server.place.clone(), 5000), 64 << 20).unwrap();
    let larger = NbdDevice::later(settings(server.place.clone(), 1000), 65 << 20).unwrap();
    assert!(!device.is_connected());
    assert_eq!(device.size_bytes(), 64 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut page = Pages([3u8; PAGE]);
            device.lock().unwrap();
            device.read_at(&mut page.0, 0).unwrap();
            assert!(page.0.iter().all(|&byte| byte == 0));
        });
        thread::sleep(Duration::from_millis(300));
        server.start_again();
    });
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(larger.read_at(&mut Pages([3u8; PAGE]).0, 0), Err(libc::EIO));
}

#[test]
fn a_server_that_comes_back_with_another_export_is_not_written_to() {
    let directory = super::server::directory();
    let path = directory.path().join("file");
    let export_of = |stub: Uuid| {
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&super::superblock(stub), PRIMARY_OFFSET_BYTES).unwrap();
    };
    let (ours, other) = (Uuid::from_u128(7), Uuid::from_u128(8));
    export_of(ours);
    let Some(mut server) = Server::nbdkit(&["file", path.to_str().unwrap()]) else { return };
    let stub = Some(ours);
    let device =
        NbdDevice::new(NbdSettings { stub, ..settings(server.place.clone(), 2000) }).unwrap();
    let page = Pages([3u8; PAGE]);
    device.write_at(&page.0, 1 << 20).unwrap();
    let mut restart_with = |stub| {
        server.kill();
        export_of(stub);
        server.start_again();
    };
    restart_with(other);
    let started = Instant::now();
    assert_eq!(device.write_at(&page.0, 1 << 20), Err(libc::EINVAL));
    assert!(started.elapsed() < Duration::from_millis(8000));
    assert_eq!(device.connections(), 0);
    let mut found = Pages([9u8; PAGE]);
    std::fs::File::open(&path).unwrap().read_exact_at(&mut found.0, 1 << 20).unwrap();
    assert!(found.0.iter().all(|&byte| byte == 0), "another's export was written to");
    restart_with(ours);
    let until = Instant::now() + Duration::from_secs(10);
    while !device.is_connected() && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    device.write_at(&page.0, 1 << 20).unwrap();
    assert_eq!(number(&device, "nbd_protocol_errors"), 0);
}
