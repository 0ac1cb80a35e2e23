//! No heap allocation in the calls of an NBD device, whether the server answers, refuses, or goes
//! and comes back. Alone in its program: the counter is one for the whole process.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::remote::NbdPlace;
use swapfsd::backend::device::BlockDevice;
use swapfsd::remote::nbd::{NbdDevice, NbdSettings};
use swapfsd::sys::alloc::{IoPath, io_path_allocations};

struct Server(Child);

impl Server {
    fn start(port: u16) -> Option<Server> {
        let child = Command::new("nbdkit")
            .args(["-f", "-i", "127.0.0.1", "-p", &port.to_string(), "--filter=error"])
            .args(["memory", "64M", "error-rate=5%"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Server(child);
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "nbdkit does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn calls_allocate_nothing() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(server) = Server::start(port) else {
        println!("SKIPPED: there is no nbdkit here");
        return;
    };
    let place = NbdPlace::Tcp("127.0.0.1".to_owned(), port);
    let deadline = Duration::from_secs(5);
    let (export, stub) = (String::new(), None);
    let settings = NbdSettings { place, export, connections: None, deadline, stub };
    let device = NbdDevice::new(settings).unwrap();
    let before = io_path_allocations();
    let (stop, done, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for me in 0..8u64 {
            let (device, stop, done, failed) = (&device, &stop, &done, &failed);
            scope.spawn(move || {
                let mut pages = vec![1u8; 64 << 10];
                let _path = IoPath::enter();
                while !stop.load(Ordering::Relaxed) {
                    let offset = me << 20;
                    let outcomes = [
                        device.write_at(&pages, offset),
                        device.read_at(&mut pages, offset),
                        device.discard(offset, 4096).map(drop),
                        device.flush(),
                        device.read_at(&mut pages, u64::MAX - 4095),
                    ];
                    let errors = outcomes.iter().filter(|outcome| outcome.is_err()).count();
                    failed.fetch_add(errors as u64, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(Duration::from_millis(300));
        drop(server);
        thread::sleep(Duration::from_millis(200));
        let server = Server::start(port);
        thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        server
    });
    assert!(done.load(Ordering::Relaxed) > 50 && failed.load(Ordering::Relaxed) > 50);
    assert_eq!(io_path_allocations() - before, 0);
}
