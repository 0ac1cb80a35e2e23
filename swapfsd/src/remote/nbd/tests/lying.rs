//! Servers that lie: a script answers the first connections, one after the other. Whatever comes,
//! calls end by their deadline, with the right bytes or an error, and nothing is written to a
//! buffer after its call.

mod scripted;

use super::{Pages, number, settings};
use crate::backend::device::BlockDevice;
use crate::remote::nbd::NbdDevice;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::remote::NbdPlace;

const PAGE: usize = 4096;
/// All that calls may take beyond their deadline, on a machine that has other things to do.
const SLACK: Duration = Duration::from_millis(4000);
const DEADLINE_MS: u64 = 600;

const DONE: u16 = 1;
const NONE: u16 = 0;
const DATA: u16 = 1;
const HOLE: u16 = 2;
const ERROR: u16 = 0x8001;
const ERROR_OFFSET: u16 = 0x8002;

/// A request as the server sees it.
#[derive(Debug, Clone, Copy)]
struct Asked {
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

struct Peer(TcpStream);

impl Peer {
    fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).ok().map(|()| bytes)
    }

    fn send(&mut self, parts: &[&[u8]]) {
        let _ = self.0.write_all(&parts.concat());
    }

    /// An honest handshake: 1 MiB, with flush and trim.
    fn shake_hands(&mut self, structured: bool, size_bytes: u64) -> Option<()> {
        self.send(&[b"NBDMAGICIHAVEOPT", &[0, 3]]);
        self.bytes(4)?;
        loop {
            let head = self.bytes(16)?;
            let length = u32::from_be_bytes(head[12..].try_into().unwrap());
            self.bytes(length as usize)?;
            let option = &head[8..12];
            let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
            match option[3] {
                8 if structured => self.send(&[&magic, option, &[0, 0, 0, 1, 0, 0, 0, 0]]),
                7 => {
                    let info = [&[0, 0][..], &size_bytes.to_be_bytes(), &[0, 0x25]].concat();
                    self.send(&[&magic, option, &[0, 0, 0, 3, 0, 0, 0, 12], &info]);
                    self.send(&[&magic, option, &[0, 0, 0, 1, 0, 0, 0, 0]]);
                    return Some(());
                }
                _ => self.send(&[&magic, option, &[0x80, 0, 0, 1, 0, 0, 0, 0]]),
            }
        }
    }

    fn asked(&mut self) -> Option<Asked> {
        let head = self.bytes(28)?;
        let number = |from: usize, to: usize| {
            head[from..to].iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))
        };
        let asked = Asked {
            kind: number(6, 8) as u16,
            cookie: number(8, 16),
            offset: number(16, 24),
            length: number(24, 28) as u32,
        };
        if asked.kind == 1 {
            self.bytes(asked.length as usize)?;
        }
        Some(asked)
    }

    fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, parts: &[&[u8]]) {
        let body = parts.concat();
        let mut head = 0x668e_33ef_u32.to_be_bytes().to_vec();
        head.extend([flags.to_be_bytes(), kind.to_be_bytes()].concat());
        head.extend(cookie.to_be_bytes());
        head.extend((body.len() as u32).to_be_bytes());
        self.send(&[&head, &body]);
    }

    /// A chunk of data that are all `value`.
    fn data(&mut self, flags: u16, asked: Asked, at: u64, length: usize, value: u8) {
        let offset = (asked.offset.wrapping_add(at)).to_be_bytes();
        self.chunk(flags, DATA, asked.cookie, &[&offset, &vec![value; length]]);
    }

    fn hole(&mut self, flags: u16, asked: Asked, at: u64, length: u32) {
        let offset = (asked.offset + at).to_be_bytes();
        self.chunk(flags, HOLE, asked.cookie, &[&offset, &length.to_be_bytes()]);
    }

    fn simple(&mut self, error: u32, cookie: u64, data: &[u8]) {
        let magic = 0x6744_6698_u32.to_be_bytes();
        self.send(&[&magic, &error.to_be_bytes(), &cookie.to_be_bytes(), data]);
    }

    /// Answers as it should be, reads with `value`.
    fn honest(&mut self, asked: Asked, value: u8) {
        match asked.kind {
            0 => self.data(DONE, asked, 0, asked.length as usize, value),
            _ => self.chunk(DONE, NONE, asked.cookie, &[]),
        }
    }
}

/// A server whose connections do `script`, each in a thread of its own, with their numbers.
fn server(script: impl Fn(Peer, usize) + Clone + Send + 'static) -> NbdPlace {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let (script, stream) = (script.clone(), stream.unwrap());
            let _ = stream.set_nodelay(true);
            thread::spawn(move || script(Peer(stream), index));
        }
    });
    NbdPlace::Tcp("127.0.0.1".to_owned(), port)
}

/// A server that opens its export honestly, and then answers each request by `answer`.
fn answering(answer: impl Fn(&mut Peer, Asked) + Clone + Send + 'static) -> NbdDevice {
    let place = server(move |mut peer, _| {
        peer.shake_hands(true, 1 << 20);
        while let Some(asked) = peer.asked() {
            answer(&mut peer, asked);
        }
    });
    NbdDevice::new(settings(place, DEADLINE_MS)).unwrap()
}

/// Reads two pages; a call that is too long fails the test.
fn read(device: &NbdDevice) -> Result<Pages<{ 2 * PAGE }>, i32> {
    let mut buffer = Pages([0xee; 2 * PAGE]);
    let started = Instant::now();
    let outcome = device.read_at(&mut buffer.0, 8192);
    assert!(started.elapsed() < Duration::from_millis(DEADLINE_MS) + SLACK);
    outcome.map(|()| buffer)
}

#[test]
fn chunks_in_any_order_are_put_together() {
    let device = answering(|peer, asked| {
        if asked.kind != 0 {
            return peer.honest(asked, 0);
        }
        peer.data(0, asked, 5000, 3192, 4);
        peer.hole(0, asked, 100, 900);
        peer.data(0, asked, 1000, 4000, 3);
        peer.data(0, asked, 0, 1, 1);
        peer.data(0, asked, 1, 99, 2);
        peer.chunk(DONE, NONE, asked.cookie, &[]);
    });
    for _ in 0..3 {
        let pages = read(&device).unwrap().0;
        let expected = [&[1u8; 1][..], &[2; 99], &[0; 900], &[3; 4000], &[4; 3192]].concat();
        assert!(pages[..] == expected[..]);
    }
}

#[test]
fn nonsense_is_an_error_and_the_next_connection_is_used() {
    type Lie = fn(&mut Peer, Asked);
    let lies: [(&str, Lie); 16] = [
        ("wrong magic", |peer, _| peer.send(&[&[0x11; 40]])),
        ("wrong cookie", |peer, asked| {
            peer.honest(Asked { cookie: asked.cookie ^ 0x100, ..asked }, 1);
        }),
        ("place without a request", |peer, asked| {
            peer.honest(Asked { cookie: asked.cookie ^ 1, ..asked }, 1);
        }),
        ("too little data", |peer, asked| peer.data(DONE, asked, 0, 8191, 1)),
        ("no data", |peer, asked| peer.chunk(DONE, NONE, asked.cookie, &[])),
        ("empty data", |peer, asked| peer.data(DONE, asked, 0, 0, 1)),
        ("too much data", |peer, asked| peer.data(DONE, asked, 0, 8193, 1)),
        ("behind the end", |peer, asked| peer.data(DONE, asked, 4096, 8192, 1)),
        ("before the start", |peer, asked| {
            peer.data(DONE, asked, 0u64.wrapping_sub(4096), 8192, 1);
        }),
        ("offset at the end of numbers", |peer, asked| {
            peer.hole(0, Asked { offset: u64::MAX - 5, ..asked }, 0, 8192);
        }),
        ("overlap", |peer, asked| {
            peer.data(0, asked, 0, 4097, 1);
            peer.data(DONE, asked, 4096, 4096, 1);
        }),
        ("twice", |peer, asked| {
            peer.hole(0, asked, 0, 8192);
            peer.data(DONE, asked, 0, 8192, 1);
        }),
        ("hole too large", |peer, asked| peer.hole(DONE, asked, 0, u32::MAX)),
        ("simple reply to a read", |peer, asked| peer.simple(0, asked.cookie, &[1; 8192])),
        ("error without error", |peer, asked| {
            peer.chunk(DONE, ERROR, asked.cookie, &[&[0; 6]]);
        }),
        ("unknown chunk", |peer, asked| peer.chunk(DONE, 77, asked.cookie, &[&[0; 6]])),
    ];
    for (name, lie) in lies {
        let place = server(move |mut peer, index| {
            peer.shake_hands(true, 1 << 20);
            while let Some(asked) = peer.asked() {
                if index == 0 { lie(&mut peer, asked) } else { peer.honest(asked, 9) }
            }
        });
        let device = NbdDevice::new(settings(place, DEADLINE_MS)).unwrap();
        assert_eq!(read(&device).map(|_| ()), Err(libc::EPROTO), "{name}");
        assert!(read(&device).unwrap().0.iter().all(|&byte| byte == 9), "{name}");
        assert_eq!(number(&device, "nbd_protocol_errors"), 1, "{name}");
    }
}

#[test]
fn answers_that_come_twice_or_to_others_are_noticed() {
    let device = answering(|peer, asked| {
        peer.honest(asked, 1);
        peer.honest(asked, 2);
    });
    let outcomes: Vec<_> = (0..4).map(|_| read(&device)).collect();
    for outcome in outcomes.iter().flatten() {
        assert!(outcome.0.iter().all(|&byte| byte == 1));
    }
    // By a request, or by nobody's, between two of them: then the connection was made anew.
    let noticed = outcomes.iter().any(|outcome| outcome.is_err());
    assert!(noticed || number(&device, "nbd_connects") > 1);
    // A write that is answered with data.
    let device = answering(|peer, asked| peer.data(DONE, asked, 0, 4096, 1));
    assert_eq!(device.write_at(&[0; PAGE], 0), Err(libc::EPROTO));
}

#[test]
fn error_chunks() {
    let device = answering(|peer, asked| {
        let enospc = [&28u32.to_be_bytes()[..], &5u16.to_be_bytes(), b"words"].concat();
        match asked.kind {
            0 => {
                peer.data(0, asked, 0, 4096, 1);
                let offset = 12_000u64.to_be_bytes();
                peer.chunk(0, ERROR_OFFSET, asked.cookie, &[&enospc, &offset]);
                peer.chunk(DONE, NONE, asked.cookie, &[]);
            }
            1 => peer.chunk(DONE, ERROR, asked.cookie, &[&enospc]),
            3 => peer.simple(1234, asked.cookie, &[]),
            _ => peer.simple(95, asked.cookie, &[]),
        }
    });
    for _ in 0..3 {
        assert_eq!(read(&device).map(|_| ()), Err(libc::ENOSPC));
        assert_eq!(device.write_at(&[0; PAGE], 0), Err(libc::ENOSPC));
        assert_eq!(device.flush(), Err(libc::EINVAL));
        let discarded = device.discard(0, 4096);
        assert_eq!(discarded, Ok(crate::sys::file::Discarded::Unsupported));
    }
    assert_eq!(number(&device, "nbd_protocol_errors"), 0);
    assert_eq!(number(&device, "nbd_connects"), 1);
}

#[test]
fn simple_replies() {
    let place = server(|mut peer, _| {
        peer.shake_hands(false, 1 << 20);
        while let Some(asked) = peer.asked() {
            match asked.offset {
                4096 => peer.honest(asked, 1),
                _ if asked.kind == 0 => peer.simple(0, asked.cookie, &[5; 2 * PAGE]),
                _ => peer.simple(0, asked.cookie, &[]),
            }
        }
    });
    let device = NbdDevice::new(settings(place, DEADLINE_MS)).unwrap();
    assert!(read(&device).unwrap().0.iter().all(|&byte| byte == 5));
    device.write_at(&[0; PAGE], 0).unwrap();
    // A chunk was not agreed on.
    assert_eq!(device.write_at(&[0; PAGE], 4096), Err(libc::EPROTO));
}

#[test]
fn never_an_answer() {
    let device = answering(|_, _| {});
    thread::scope(|scope| {
        for me in 0..5u64 {
            let device = &device;
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(me * 40));
                assert!(read(device).is_err());
                let started = Instant::now();
                assert!(device.write_at(&[0; PAGE], 0).is_err());
                assert!(started.elapsed() < Duration::from_millis(DEADLINE_MS) + SLACK);
            });
        }
    });
    assert!(number(&device, "nbd_timeouts") > 0);
}

#[test]
fn dribbling_does_not_get_past_the_deadline_and_late_data_go_nowhere() {
    let device = answering(|peer, asked| {
        let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
        bytes.extend([0, 1, 0, 1]);
        bytes.extend(asked.cookie.to_be_bytes());
        bytes.extend((asked.length + 8).to_be_bytes());
        bytes.extend(asked.offset.to_be_bytes());
        bytes.extend(vec![0x44; asked.length as usize]);
        for part in bytes.chunks(11) {
            if peer.0.write_all(part).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    let mut buffer = Pages([0xee; 2 * PAGE]);
    let started = Instant::now();
    assert_eq!(device.read_at(&mut buffer.0, 0), Err(libc::ETIMEDOUT));
    assert!(started.elapsed() < Duration::from_millis(DEADLINE_MS) + SLACK);
    buffer.0.fill(0x11);
    thread::sleep(Duration::from_secs(1));
    assert!(buffer.0.iter().all(|&byte| byte == 0x11), "written to after the call");
}

#[test]
fn closing_in_the_middle_of_a_reply() {
    // Reads are tried again, and the fourth connection is honest.
    let place = server(|mut peer, index| {
        peer.shake_hands(true, 1 << 20);
        while let Some(asked) = peer.asked() {
            if index >= 3 {
                peer.honest(asked, 6);
            } else {
                let head = [&0x668e_33ef_u32.to_be_bytes()[..], &[0, 1, 0, 1]].concat();
                peer.send(&[&head[..4 + index * 2]]);
                return;
            }
        }
    });
    let device = NbdDevice::new(settings(place, DEADLINE_MS)).unwrap();
    assert!(read(&device).unwrap().0.iter().all(|&byte| byte == 6));
    assert_eq!(number(&device, "nbd_retries"), 3);
    // Writes and trims are not.
    let device = answering(|peer, _| {
        let _ = peer.0.shutdown(std::net::Shutdown::Both);
    });
    let started = Instant::now();
    assert_eq!(device.write_at(&[0; PAGE], 0), Err(libc::ECONNRESET));
    assert_eq!(device.discard(0, 4096), Err(libc::ECONNRESET));
    assert!(started.elapsed() < Duration::from_millis(DEADLINE_MS) + SLACK);
}

#[test]
fn a_server_that_does_not_take_what_is_sent() {
    let place = server(|mut peer, _| {
        peer.shake_hands(true, 1 << 30);
        thread::sleep(Duration::from_secs(5));
    });
    let device = NbdDevice::new(settings(place, DEADLINE_MS)).unwrap();
    let data = vec![1u8; 16 << 20];
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let started = Instant::now();
                assert!(device.write_at(&data, 0).is_err());
                assert!(started.elapsed() < Duration::from_millis(DEADLINE_MS) + SLACK);
            });
        }
    });
}

#[test]
fn a_handshake_that_makes_no_sense() {
    type Lie = fn(&mut Peer);
    let lies: [(&str, Lie); 7] = [
        ("no NBD server", |peer| peer.send(&[b"220 mail.example SMTP ready\r\n"])),
        ("old handshake", |peer| {
            peer.send(&[b"NBDMAGIC", &0x4202_8186_1253_u64.to_be_bytes(), &[0; 200]]);
        }),
        ("fixed newstyle", |peer| peer.send(&[b"NBDMAGICIHAVEOPT", &[0, 0]])),
        ("hung up", |peer| drop(peer.0.shutdown(std::net::Shutdown::Both))),
        ("nonsense", |peer| {
            peer.send(&[b"NBDMAGICIHAVEOPT", &[0, 3], &[0xff; 100]]);
        }),
        ("nonsense", |peer| {
            let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
            let huge = [0, 0, 0, 8, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
            peer.send(&[b"NBDMAGICIHAVEOPT", &[0, 3], &magic, &huge]);
        }),
        ("waiting", |_| {}),
    ];
    for (expected, lie) in lies {
        let place = server(move |mut peer, _| {
            lie(&mut peer);
            let mut rest = [0; 4096];
            while peer.0.read(&mut rest).is_ok_and(|count| count > 0) {}
        });
        let started = Instant::now();
        let error = NbdDevice::new(settings(place, DEADLINE_MS)).unwrap_err().to_string();
        assert!(started.elapsed() < Duration::from_millis(DEADLINE_MS) + SLACK);
        assert!(error.contains(expected) || expected == "waiting", "{expected}: {error}");
    }
}

#[test]
fn random_bytes_behind_the_handshake_do_no_harm() {
    for round in 0..40 {
        let place = server(move |mut peer, _| {
            peer.shake_hands(true, 1 << 20);
            let mut random = super::Random(round + 1);
            while let Some(asked) = peer.asked() {
                let mut body: Vec<u8> = (0..32).map(|_| random.below(256) as u8).collect();
                body[..8].copy_from_slice(&(asked.offset + random.below(2)).to_be_bytes());
                let kind = [0, 1, 2, 0x8001, 0x8002, 5][random.below(6) as usize];
                let flags = random.below(2) as u16;
                let length = random.below(32) as usize;
                peer.chunk(flags, kind, asked.cookie, &[&body[..length]]);
            }
        });
        // A slow machine does not get that far in time.
        let Ok(device) = NbdDevice::new(settings(place, 100)) else { continue };
        for _ in 0..3 {
            assert!(device.read_at(&mut [0; PAGE], 0).is_err());
        }
    }
}
