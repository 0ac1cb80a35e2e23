//! Measures an NBD export through [`NbdDevice`]: for comparison with fio's nbd engine.
//!
//! `nbd_speed URL SECONDS [CONNECTIONS [TEST]]`: 4 KiB random reads at depth 1 and by 32 threads,
//! and writes of 1 MiB at depth 1 and by 4 threads; `CONNECTIONS` 0: as many as suit; `TEST`:
//! `read1`, `read32`, `write1`, or `write4`. What the export holds is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::remote::RemoteUrl;
use swapfsd::backend::device::BlockDevice;
use swapfsd::buffer::BufferPool;
use swapfsd::remote::nbd::{NbdDevice, NbdSettings};

fn run(device: &NbdDevice, threads: u64, length: usize, write: bool, time: Duration) {
    let pool = BufferPool::new(64, 8).expect("buffers");
    let (stop, done, busy_ns) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let places = device.size_bytes() / length as u64;
    let started = Instant::now();
    thread::scope(|scope| {
        for me in 0..threads {
            let (stop, done, busy_ns, pool) = (&stop, &done, &busy_ns, &pool);
            scope.spawn(move || {
                let mut buffer = pool.take(length);
                let mut random = me * 77_777 + 1;
                for byte in &mut *buffer {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (random >> 56) as u8;
                }
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
                    let offset = ((random >> 33) % places) * length as u64;
                    let began = Instant::now();
                    match write {
                        true => device.write_at(&buffer, offset),
                        false => device.read_at(&mut buffer, offset),
                    }
                    .expect("the server answers");
                    busy_ns.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    let (done, elapsed) = (done.into_inner(), started.elapsed().as_secs_f64());
    let kind = if write { "write" } else { "read" };
    println!(
        "{kind} {} KiB, {threads} threads: {:.0}/s, {:.0} MiB/s, mean {:.1} us",
        length >> 10,
        done as f64 / elapsed,
        done as f64 * length as f64 / elapsed / f64::from(1 << 20),
        busy_ns.into_inner() as f64 / done as f64 / 1000.0,
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let url = arguments.get(1).expect("nbd_speed URL SECONDS [CONNECTIONS]");
    let Ok(RemoteUrl::Nbd(url)) = url.parse() else { panic!("no address of an NBD server") };
    let seconds = arguments.get(2).and_then(|text| text.parse().ok()).unwrap_or(3);
    let connections =
        arguments.get(3).and_then(|text| text.parse().ok()).filter(|&count| count > 0);
    let (place, export) = (url.place, url.export);
    let deadline = Duration::from_secs(30);
    let settings = NbdSettings { place, export, connections, deadline, stub: None };
    let device = NbdDevice::new(settings).expect("the export is there");
    thread::sleep(Duration::from_millis(300));
    println!("{} connections", device.connections());
    let time = Duration::from_secs(seconds);
    let only = arguments.get(4);
    let tests = [
        ("read1", 1, 4096, false),
        ("read32", 32, 4096, false),
        ("write1", 1, 1 << 20, true),
        ("write4", 4, 1 << 20, true),
    ];
    for (name, threads, length, write) in tests {
        if only.is_none_or(|only| only == name) {
            run(&device, threads, length, write, time);
        }
    }
}
