//! A server that lies, cuts, dribbles, or says nothing: no request outlives its deadline, none
//! panics, and none gets an object that is not its own.

use super::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// What the server does once it has answered the first PING of a connection.
type Lie = fn(&mut TcpStream, &mut u64);

fn serve(mut socket: TcpStream, lie: Lie) {
    let mut buffer = [0u8; 4096];
    let Ok(1..) = socket.read(&mut buffer) else { return };
    if socket.write_all(b"+PONG\r\n").is_err() {
        return;
    }
    let mut state = u64::from(socket.peer_addr().map_or(0, |address| address.port()));
    while let Ok(1..) = socket.read(&mut buffer) {
        lie(&mut socket, &mut state);
    }
}

fn liar(lie: Lie) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || serve(socket, lie));
        }
    });
    port
}

/// Asks it for something, and for how long it took.
fn ask(lie: Lie) -> (Result<usize, i32>, Duration) {
    let store = RedisStore::new(settings(liar(lie), 700)).unwrap();
    let started = Instant::now();
    let result = get(&store, &keys(1..9));
    let spent = started.elapsed();
    assert!(spent < Duration::from_millis(1000), "{spent:?} {result:?}");
    let started = Instant::now();
    let _ = put(&store, &keys(1..9));
    let _ = store.remove(&keys(1..9));
    let _ = store.check();
    let _ = store.clear(None);
    let spent_all = started.elapsed();
    assert!(spent_all < Duration::from_millis(6 * 1000), "{spent_all:?}");
    (result, spent)
}

#[test]
fn garbage() {
    let lie: Lie = |socket, _| drop(socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    assert_eq!(ask(lie).0, Err(libc::EPROTO));
}

#[test]
fn replies_of_the_wrong_kind() {
    let lie: Lie = |socket, _| drop(socket.write_all(&b":1\r\n".repeat(8)));
    assert_eq!(ask(lie).0, Err(libc::EPROTO));
    let lie: Lie = |socket, _| drop(socket.write_all(&b"*1\r\n$1\r\nx\r\n".repeat(8)));
    assert_eq!(ask(lie).0, Err(libc::EPROTO));
}

#[test]
fn lengths_that_are_too_long() {
    for lie in [
        (|socket, _| drop(socket.write_all(b"$99999999999\r\nx"))) as Lie,
        |socket, _| drop(socket.write_all(b"*99999999999\r\n")),
        |socket, _| drop(socket.write_all(b"$-5\r\n")),
        |socket, _| drop(socket.write_all(&[b'+'; 100_000])),
        |socket, _| drop(socket.write_all(&b"*3000\r\n".repeat(10_000))),
    ] {
        assert_eq!(ask(lie).0, Err(libc::EPROTO));
    }
}

#[test]
fn fewer_replies_than_requests() {
    let lie: Lie = |socket, _| drop(socket.write_all(b"$-1\r\n$-1\r\n"));
    assert_eq!(ask(lie).0, Err(libc::ETIMEDOUT));
}

#[test]
fn more_replies_than_requests_end_with_their_connection() {
    // The first request is answered once too often: the next one must not take that for its own.
    let lie: Lie = |socket, state| {
        *state += 1;
        drop(socket.write_all(b"$-1\r\n"));
        std::thread::sleep(Duration::from_millis(5));
        drop(socket.write_all(b"$9\r\nnot yours\r\n"));
    };
    let mut settings = settings(liar(lie), 700);
    settings.connections = 1;
    let store = RedisStore::new(settings).unwrap();
    for slot in 0..20 {
        let key = Key { slot, number: 0 };
        let mut answers = 0;
        let result = store.get(&[key], &mut |_, got| {
            answers += 1;
            // What comes is checked above us: here it must at least be told once.
            assert!(got.is_none() || got == Some(b"not yours"));
        });
        assert!(answers <= 1 && (result.is_err() || answers == 1));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn bytes_that_dribble() {
    let lie: Lie = |socket, _| {
        drop(socket.write_all(b"$1000\r\n"));
        while socket.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    assert_eq!(ask(lie).0, Err(libc::ETIMEDOUT));
}

#[test]
fn a_connection_that_ends_in_mid_reply() {
    let lie: Lie = |socket, _| {
        drop(socket.write_all(b"$-1\r\n$1000\r\nxxx"));
        drop(socket.shutdown(std::net::Shutdown::Both));
    };
    let (result, spent) = ask(lie);
    assert!(result.is_err() && spent > Duration::from_millis(500), "{result:?} {spent:?}");
}

#[test]
fn no_answer_at_all() {
    let lie: Lie = |_, _| {};
    assert_eq!(ask(lie).0, Err(libc::ETIMEDOUT));
}

#[test]
fn a_server_that_does_not_even_answer_the_first_ping() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = RedisStore::new(settings(listener.local_addr().unwrap().port(), 600)).unwrap();
    let started = Instant::now();
    assert!(get(&store, &keys(0..3)).is_err());
    assert!(started.elapsed() < Duration::from_millis(4000));
    assert!(get(&store, &keys(0..3)).is_err());
    assert!(started.elapsed() < Duration::from_millis(5000), "not waited for again");
}

#[test]
fn errors_that_servers_answer() {
    for (lie, errno) in [
        ((|socket, _| drop(socket.write_all(&b"-OOM no\r\n".repeat(8)))) as Lie, libc::ENOSPC),
        (|socket, _| drop(socket.write_all(&b"-MISCONF no\r\n".repeat(8))), libc::ENOSPC),
        (|socket, _| drop(socket.write_all(&b"-NOAUTH no\r\n".repeat(8))), libc::EACCES),
        (|socket, _| drop(socket.write_all(&b"-WRONGTYPE no\r\n".repeat(8))), libc::EPROTO),
        (|socket, _| drop(socket.write_all(&b"-LOADING no\r\n".repeat(8))), libc::ETIMEDOUT),
        (|socket, _| drop(socket.write_all(&b"-MOVED 1 h:1\r\n".repeat(8))), libc::EPROTO),
        (|socket, _| drop(socket.write_all(&b"-\r\n".repeat(8))), libc::EPROTO),
    ] {
        assert_eq!(ask(lie).0, Err(errno));
    }
}

/// Maps of a cluster that make no sense, whatever the crate makes of them.
#[test]
fn a_cluster_that_lies() {
    for lie in [
        (|socket, _| drop(socket.write_all(b"*0\r\n"))) as Lie,
        |socket, _| drop(socket.write_all(b"*1\r\n*3\r\n:9\r\n:1\r\n*2\r\n$1\r\nx\r\n:1\r\n")),
        |socket, _| drop(socket.write_all(b"*1\r\n*3\r\n:0\r\n:99999\r\n*2\r\n$1\r\nx\r\n:1\r\n")),
        |socket, _| drop(socket.write_all(b"+PONG\r\n")),
        |socket, _| drop(socket.write_all(b"-MOVED 5 nowhere:99999\r\n")),
        |socket, _| drop(socket.write_all(b"-ERR no cluster\r\n")),
    ] {
        let mut settings = settings(liar(lie), 600);
        settings.server.cluster = true;
        let store = RedisStore::new(settings).unwrap();
        let started = Instant::now();
        assert!(get(&store, &keys(0..9)).is_err());
        assert!(started.elapsed() < Duration::from_millis(4000), "{:?}", started.elapsed());
    }
}
