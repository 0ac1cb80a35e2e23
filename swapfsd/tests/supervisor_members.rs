//! A real supervisor, in this process, and members that come and go. The worker is the test, as
//! far as the link is concerned; processes that only sleep stand for it and for standbys.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};
use swapfsd::control::{self, Control};
use swapfsd::members;
use swapfsd::seat::{Role, Seat};
use swapfsd::supervisor::link::{Holdings, Kind, Link};
use swapfsd::supervisor::members::{Answered, Asked};
use swapfsd::supervisor::upgrade::Door;
use swapfsd::supervisor::{Parts, Supervisor};
use swapfsd::sys::spawn::Command;
use swapfsd::sys::{device, passing};

const PATIENCE: Duration = Duration::from_secs(20);

fn sleeper() -> Command {
    let words = [b"sleep".to_vec(), b"600".to_vec()];
    Command::new(File::open("/bin/sleep").unwrap(), &words).unwrap()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn is_locked(path: &Path) -> bool {
    device::lock_exclusively(&File::open(path).unwrap()).is_err()
}

/// The worker's side of the link, and what the outside sees.
struct Worker<'a> {
    link: Link,
    control: &'static Control,
    folder: &'a Path,
    manager: UnixDatagram,
}

impl Worker<'_> {
    fn standby(&self) -> u32 {
        self.control.page().standby_pid.load(SeqCst)
    }

    /// The next packet of the kind given.
    fn answer(&self) -> Answered {
        let packet = self.link.next().unwrap().unwrap();
        assert_eq!(packet.kind(), Some(Kind::MemberHeld));
        Answered::decode(packet.payload()).unwrap()
    }

    /// Has `asked` done, and answers the errno; by then the standby that knew the old members is
    /// gone.
    fn change(&self, asked: Asked, file: Option<&File>) -> i32 {
        wait_until("a standby", || self.standby() != 0);
        let before = self.standby();
        match file {
            Some(file) => self.link.say_with_file(Kind::HoldMember, &asked.encode(), file),
            None => self.link.say(Kind::ForgetMember, &asked.encode()),
        }
        .unwrap();
        let answered = self.answer();
        assert_eq!(answered.asked, asked);
        if answered.errno == 0 {
            assert!(!Path::new(&format!("/proc/{before}")).exists(), "the old standby lives");
            wait_until("another standby", || ![0, before].contains(&self.standby()));
        } else {
            assert_eq!(self.standby(), before, "nothing has changed");
        }
        answered.errno
    }

    /// What the service manager was told, without the descriptors.
    fn told(&self) -> Vec<String> {
        self.manager.set_nonblocking(true).unwrap();
        let mut text = [0; 256];
        let mut all = Vec::new();
        while let Ok(received) = passing::receive(self.manager.as_fd(), &mut text) {
            all.push(String::from_utf8_lossy(&text[..received.len]).replace('\n', " "));
        }
        all
    }

    fn run(&self) {
        let path = self.folder.join("member");
        let member = File::create(&path).unwrap();
        device::lock_exclusively(&member).unwrap();
        self.told();
        assert_eq!(self.change(Asked { place: 2, number: 1 }, Some(&member)), 0);
        drop(member);
        assert!(is_locked(&path), "the supervisor holds the member and its lock");
        let store = ["FDSTOREREMOVE=1 FDNAME=swapfs-member2", "FDSTORE=1 FDNAME=swapfs-member2"];
        assert_eq!(self.told(), store);
        // A packet without its file is refused.
        self.link.say(Kind::HoldMember, &Asked { place: 3, number: 2 }.encode()).unwrap();
        assert_eq!(self.answer().errno, libc::EBADF);
        assert_eq!(self.change(Asked { place: 2, number: 3 }, None), 0);
        wait_until("the lock is free", || !is_locked(&path));
        assert_eq!(self.told(), &store[..1]);
        // An upgrade, below, takes memory; members do not.
        assert_eq!(self.control.page().supervisor_allocations.load(SeqCst), 0);
        self.while_an_upgrade_is_under_way();
    }

    fn while_an_upgrade_is_under_way(&self) {
        let client = self.upgrade();
        let member = tempfile::tempfile().unwrap();
        assert_eq!(self.change(Asked { place: 0, number: 4 }, Some(&member)), libc::EBUSY);
        // What is removed is removed: then it is the upgrade that has to wait.
        assert_eq!(self.change(Asked { place: 0, number: 5 }, None), 0);
        let said = self.said(&client);
        assert!(said.starts_with("failed: ") && said.contains("a tier was removed"), "{said}");
        assert_eq!(self.change(Asked { place: 0, number: 6 }, Some(&member)), 0);
    }

    /// Asks for an upgrade to a program that never gets ready.
    fn upgrade(&self) -> OwnedFd {
        let path = self.folder.join("door/socket");
        let client = passing::connect_packets(path.as_os_str().as_encoded_bytes()).unwrap();
        let program = File::open("/bin/sleep").unwrap();
        passing::send(client.as_fd(), b"upgrade", &[program.as_raw_fd()]).unwrap();
        let said = self.said(&client);
        assert!(said.starts_with("progress: the new program is started"), "{said}");
        client
    }

    fn said(&self, client: &OwnedFd) -> String {
        let mut text = [0; 512];
        let received = passing::receive(client.as_fd(), &mut text).unwrap();
        String::from_utf8_lossy(&text[..received.len]).into_owned()
    }
}

#[test]
fn members_are_held_and_forgotten_and_standbys_know_the_present_ones() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    // SAFETY: this process has no other thread that reads the environment.
    unsafe { std::env::set_var("NOTIFY_SOCKET", folder.path().join("notify")) };
    let image = tempfile::tempfile().unwrap();
    let holdings = Holdings::from_files(|index| match index {
        1 | 8.. => image.try_clone().ok(),
        _ => tempfile::tempfile().ok(),
    });
    let holdings = holdings.unwrap();
    assert!(members::is_same_file(&image, &holdings.members[7]).unwrap());
    let seat = Seat::open(&holdings.control).unwrap();
    assert!(seat.take(Role::Watch, Duration::ZERO).unwrap());
    let control = control::install(Control::new(None).unwrap());
    let mut supervisor = Supervisor::new(Parts {
        holdings,
        seat,
        control,
        worker: sleeper(),
        supervisor: sleeper(),
        watchdog: Duration::ZERO,
        abort: None,
        door: Some(Door::open(&folder.path().join("door/socket")).unwrap()),
        cgroup: None,
    })
    .unwrap();
    let mut process = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
    let (ours, link) = Link::pair().unwrap();
    supervisor.adopt(process.id() as i32, Some(ours));
    let folder_path = folder.path().to_owned();
    let worker = thread::spawn(move || {
        let worker = Worker { link, control, folder: &folder_path, manager };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.run()));
        worker.link.say(Kind::Ended, &[]).unwrap();
        process.kill().unwrap();
        // The supervisor may have seen to that already.
        drop(process.wait());
        outcome
    });
    supervisor.watch().unwrap();
    if let Err(panic) = worker.join().unwrap() {
        std::panic::resume_unwind(panic);
    }
    assert!(!fs::exists(folder.path().join("door")).unwrap());
}
