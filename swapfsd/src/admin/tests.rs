//! Requests and replies as text, and over a socket.

use super::server::Server;
use super::*;
use crate::backend::fake;
use crate::backend::ram::Ram;
use crate::held::Held;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(5);

fn server(folder: &Path, patience: Duration) -> (Server, PathBuf) {
    let path = folder.join("swapfs/volume.control");
    let volume = fake::volume("", "");
    let server = Server::start_with(&path, volume, folder.join("swapfile"), patience);
    (server.unwrap().unwrap(), path)
}

/// Sends one line, and answers all that come.
fn ask(path: &Path, line: &str) -> Vec<Value> {
    let mut stream = UnixStream::connect(path).unwrap();
    // A client that is refused may not get rid of it.
    drop(stream.write_all(line.as_bytes()));
    replies(stream)
}

fn replies(stream: UnixStream) -> Vec<Value> {
    let lines = BufReader::new(stream).lines();
    lines.map_while(Result::ok).map(|line| serde_json::from_str(&line).unwrap()).collect()
}

fn message(replies: &[Value]) -> &str {
    assert_eq!((replies.len(), &replies[0]["kind"]), (1, &json!("error")), "{replies:?}");
    assert_eq!(replies[0]["version"], VERSION);
    replies[0]["message"].as_str().unwrap()
}

#[test]
fn lines_are_those_of_the_specification() {
    let text = |request: Request| -> Value { serde_json::from_str(&request.to_line()).unwrap() };
    let remove = Request::Remove { tier: 2, direction: Direction::Down, rate_bytes: None };
    assert_eq!(
        text(remove),
        json!({"version": 1, "command": "remove", "tier": 2, "direction": "down", "rate_bytes": null})
    );
    assert_eq!(text(Request::Tiers), json!({"version": 1, "command": "tiers"}));
    let read = |text: &str| Request::from_line(text.as_bytes());
    let remove = Request::Remove { tier: 3, direction: Direction::Auto, rate_bytes: None };
    assert_eq!(read(r#"{"version":1,"command":"remove","tier":3}"#), Ok(remove));
    for request in [
        Request::Add { image: "/x".into() },
        Request::Set { tier: 0, options: "high=80".to_owned() },
        Request::Watch,
        Request::Cancel,
        Request::Drop,
    ] {
        assert_eq!(read(&request.to_line()), Ok(request));
    }
    assert!(read(r#"{"command":"tiers"}"#).unwrap_err().contains("version none"));
    assert!(read(r#"{"version":2,"command":"tiers"}"#).unwrap_err().contains("version 2"));
    assert!(read(r#"{"version":1,"command":"set","tier":1}"#).unwrap_err().contains("options"));
    let done = Reply::Done(Done { order: Some(3), ..Done::default() });
    assert_eq!(done.to_line(), "{\"version\":1,\"kind\":\"done\",\"order\":3}\n");
    assert_eq!(Reply::from_line(done.to_line().as_bytes()), Ok(done));
}

#[test]
fn requests_are_answered_and_the_socket_is_roots_until_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (server, path) = server(folder.path(), PATIENCE);
    let meta = path.metadata().unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    let mode = path.parent().unwrap().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    let add = ask(&path, "{\"version\":1,\"command\":\"add\",\"image\":\"/dev/null\"}\n");
    assert_eq!(add, [json!({"version": 1, "kind": "done", "order": 7})]);
    let tiers = ask(&path, &Request::Tiers.to_line());
    assert_eq!(tiers.len(), 1);
    assert_eq!(tiers[0]["tiers"].as_array().unwrap().len(), 9);
    assert_eq!(tiers[0]["evacuation"]["left_pages"], 3);
    // Not swap: it is handed on.
    assert_eq!(ask(&path, &Request::Drop.to_line()), [json!({"version": 1, "kind": "done"})]);
    let error = ask(&path, &Request::Cancel.to_line());
    assert_eq!(message(&error), "tier: Cancel can't be done: try something else");
    drop(server);
    assert!(!path.exists() && !path.parent().unwrap().exists());
}

#[test]
fn progress_comes_before_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, path) = server(folder.path(), PATIENCE);
    let remove = Request::Remove { tier: 1, direction: Direction::Up, rate_bytes: Some(10) };
    let lines = ask(&path, &remove.to_line());
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["progress", "progress", "done"]);
    assert_eq!(lines[0]["left_bytes"], 8192);
    assert_eq!(lines[1]["eta_s"], Value::Null);
    assert!(lines[1].as_object().unwrap().contains_key("eta_s"));
}

#[test]
fn what_is_no_request_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, path) = server(folder.path(), Duration::from_millis(200));
    let said = |line: &str| message(&ask(&path, line)).to_owned();
    assert!(said("hello\n").contains("no JSON"));
    assert!(said("{\"version\":1,\"command\":\"dance\"}\n").contains("unknown variant `dance`"));
    assert!(said(&format!("{}\n", "x".repeat(MAX_LINE_BYTES + 1))).contains("longer than 65536"));
    let started = Instant::now();
    assert!(said("{\"version\":1,").contains("did not come in time"));
    assert!(started.elapsed() >= Duration::from_millis(200));
    // Nothing is asked for, and nothing said.
    drop(UnixStream::connect(&path).unwrap());
}

#[test]
fn a_client_that_goes_away_is_noticed_and_more_than_eight_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, path) = server(folder.path(), PATIENCE);
    let watch = |_| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(Request::Watch.to_line().as_bytes()).unwrap();
        // It is served.
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    let watching: Vec<UnixStream> = (0..8).map(watch).collect();
    let refused = replies(UnixStream::connect(&path).unwrap());
    assert!(message(&refused).contains("too many clients"));
    drop(watching);
    let deadline = Instant::now() + Duration::from_secs(10);
    while ask(&path, &Request::Tiers.to_line())[0]["kind"] != "done" {
        assert!(Instant::now() < deadline, "clients that have gone are still counted");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_successor_takes_the_socket_over() {
    let folder = tempfile::tempdir().unwrap();
    let (first, path) = server(folder.path(), PATIENCE);
    std::mem::forget(first);
    let (_second, path_again) = server(folder.path(), PATIENCE);
    assert_eq!(path, path_again);
    assert_eq!(ask(&path, &Request::Tiers.to_line())[0]["kind"], "done");
}

#[test]
fn a_back_end_without_tiers_has_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.control");
    let volume = fake::volume_on(Arc::new(Ram::new(16, &Held::private()).unwrap()));
    assert!(Server::start(&path, volume, "/x".into()).unwrap().is_none());
    assert!(!path.exists());
}
