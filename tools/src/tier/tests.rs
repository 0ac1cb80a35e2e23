use super::client::Outcome;
use super::removal::{End, Watcher};
use super::*;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use swapfsd::admin::{Direction, Progress, Reply};

/// What a volume with memory and a log says.
pub(crate) fn two_tiers() -> Stats {
    let mut stats = Stats::parse(crate::stats::tests::SAMPLE.as_bytes()).unwrap();
    stats.type_name = "tier".into();
    stats.tiers = vec![
        TierStats {
            order: 0,
            type_name: "zmem".into(),
            state: "ok".into(),
            capacity_bytes: 1 << 30,
            used_bytes: 512 << 20,
            live_bytes: 500 << 20,
            pages: 300_000,
            high_percent: 90,
            low_percent: 80,
            read_pages: 300,
            demoted_out_pages: 1000,
            age_pages: [150_000, 75_000, 45_000, 30_000],
            read_p50_us: 8,
            read_p99_us: 64,
            ..TierStats::default()
        },
        TierStats {
            order: 1,
            type_name: "log".into(),
            image: "/dev/nvme0n1p3".into(),
            uuid: "1f2e".into(),
            state: "ok".into(),
            capacity_bytes: 8 << 30,
            used_bytes: 2 << 30,
            live_bytes: 1 << 30,
            pages: 500_000,
            high_percent: 85,
            low_percent: 70,
            promote: "second".into(),
            keep: "exclusive".into(),
            read_pages: 100,
            demoted_in_pages: 1000,
            demoted_in_bytes: 2 << 20,
            promoted_out_pages: 200,
            age_pages: [0, 0, 100_000, 400_000],
            read_p50_us: 128,
            read_p99_us: 4096,
            ..TierStats::default()
        },
    ];
    stats
}

/// What a fake daemon does with one client.
enum Act {
    /// Expects this request, says these lines, and closes.
    Say(Request, Vec<Reply>),
    /// The same, and it is gone for a while.
    Die(Request, Vec<Reply>),
    /// Says something that is no reply.
    Babble(&'static str),
}

fn progress(moved_pages: u64) -> Reply {
    Reply::Progress(Progress {
        left_bytes: 1000,
        moved_pages,
        left_pages: 100 - moved_pages,
        bytes_per_s: 10,
        eta_s: Some(100),
    })
}

fn done() -> Reply {
    Reply::Done(Done::default())
}

fn refusal(message: &str) -> Reply {
    Reply::Error { message: message.to_owned() }
}

/// Answers one client after the other.
fn daemon(path: PathBuf, acts: Vec<Act>) -> JoinHandle<()> {
    let mut listener = Some(UnixListener::bind(&path).unwrap());
    thread::spawn(move || {
        for act in acts {
            let open = listener.take().unwrap_or_else(|| UnixListener::bind(&path).unwrap());
            let (mut stream, _): (UnixStream, _) = open.accept().unwrap();
            let mut line = Vec::new();
            BufReader::new(stream.try_clone().unwrap()).read_until(b'\n', &mut line).unwrap();
            let (expected, replies, dies) = match act {
                Act::Say(expected, replies) => (expected, replies, false),
                Act::Die(expected, replies) => (expected, replies, true),
                Act::Babble(text) => {
                    stream.write_all(text.as_bytes()).unwrap();
                    listener = Some(open);
                    continue;
                }
            };
            assert_eq!(Request::from_line(&line), Ok(expected));
            for reply in replies {
                stream.write_all(reply.to_line().as_bytes()).unwrap();
            }
            if dies {
                // As after a death: nobody listens for a moment, and the file is there still.
                drop((open, stream));
                thread::sleep(Duration::from_millis(100));
                std::fs::remove_file(&path).unwrap();
            } else {
                listener = Some(open);
            }
        }
    })
}

fn removal() -> Request {
    Request::Remove { tier: 1, direction: Direction::Up, rate_bytes: Some(1 << 20) }
}

/// Removes tier 1 from a volume whose daemon does that; answers the end and the progress.
fn removed(acts: Vec<Act>, return_limit: Duration) -> (End, Vec<u64>) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("u1.control");
    let server = daemon(path.clone(), acts);
    let seen = RefCell::new(Vec::new());
    let end = Watcher {
        socket: &Socket::at(&path),
        tier: Some(1),
        progress: &mut |now| seen.borrow_mut().push(now.moved_pages),
        leave: &|| seen.borrow().contains(&99),
        return_limit,
    }
    .follow(&removal());
    server.join().unwrap();
    (end, seen.into_inner())
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_removal_is_followed_to_its_end() {
    let (end, seen) =
        removed(vec![Act::Say(removal(), vec![progress(3), progress(7), done()])], LONG);
    assert_eq!((end, seen), (End::Removed { moved_pages: 7 }, vec![3, 7]));
}

#[test]
fn a_refusal_is_a_failure_in_the_daemons_words() {
    let why = "tier 1 has 3 GiB of pages, and there is no room: add a tier first";
    let (end, _) = removed(vec![Act::Say(removal(), vec![refusal(why)])], LONG);
    assert_eq!(end, End::Failed(why.to_owned()));
}

#[test]
fn a_removal_that_is_called_off_is_a_failure() {
    let said = vec![progress(3), refusal("it was called off: the tier takes pages again")];
    let (end, seen) = removed(vec![Act::Say(removal(), said)], LONG);
    assert_eq!(end, End::Failed("it was called off: the tier takes pages again".to_owned()));
    assert_eq!(seen, [3]);
}

#[test]
fn a_worker_that_dies_has_a_successor_that_is_watched() {
    let acts = vec![
        Act::Die(removal(), vec![progress(3)]),
        Act::Die(Request::Watch, vec![progress(5)]),
        Act::Say(Request::Watch, vec![progress(9), done()]),
    ];
    assert_eq!(removed(acts, LONG), (End::Removed { moved_pages: 9 }, vec![3, 5, 9]));
}

fn tiers(orders: &[u32], evacuation: Option<u32>) -> Reply {
    Reply::Done(Done {
        order: None,
        tiers: Some(orders.iter().map(|order| serde_json::json!({ "order": order })).collect()),
        evacuation: evacuation.map(|tier| serde_json::json!({ "tier": tier })),
    })
}

#[test]
fn a_successor_that_has_ended_it_already_is_success() {
    let none = || vec![refusal("no tier is being emptied")];
    let acts = vec![
        Act::Die(removal(), vec![progress(3)]),
        Act::Say(Request::Watch, none()),
        // It has only begun to serve.
        Act::Say(Request::Tiers, vec![tiers(&[0, 1, 2], Some(1))]),
        Act::Say(Request::Watch, none()),
        Act::Say(Request::Tiers, vec![tiers(&[0, 2], None)]),
    ];
    assert_eq!(removed(acts, LONG).0, End::Removed { moved_pages: 3 });
    let acts = vec![
        Act::Die(removal(), vec![]),
        Act::Say(Request::Watch, none()),
        Act::Say(Request::Tiers, vec![tiers(&[0, 1], None)]),
    ];
    assert_eq!(removed(acts, LONG).0, End::Failed("no tier is being emptied".to_owned()));
}

#[test]
fn a_successor_that_never_comes_is_not_waited_for_for_ever() {
    let acts = vec![Act::Die(removal(), vec![progress(3)])];
    let End::Failed(why) = removed(acts, Duration::from_millis(300)).0 else { panic!() };
    assert!(why.contains("the daemon was lost") && why.contains("swapfs tier watch"), "{why}");
}

#[test]
fn who_leaves_is_not_told_the_end() {
    let acts = vec![Act::Say(removal(), vec![progress(99)])];
    assert_eq!(removed(acts, LONG), (End::Left, vec![99]));
}

fn asked(acts: Vec<Act>, request: &Request) -> Result<Done, String> {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("u1.control");
    let server = daemon(path.clone(), acts);
    let outcome = Socket::at(&path).ask(request);
    server.join().unwrap();
    outcome
}

#[test]
fn short_requests_and_their_answers() {
    let set = || Request::Set { tier: 1, options: "high=70".into() };
    assert_eq!(asked(vec![Act::Say(set(), vec![done()])], &set()), Ok(Done::default()));
    let add = || Request::Add { image: "/img/b".into() };
    let added = Reply::Done(Done { order: Some(3), ..Done::default() });
    assert_eq!(asked(vec![Act::Say(add(), vec![added])], &add()).unwrap().order, Some(3));
    let refused = vec![Act::Say(Request::Cancel, vec![refusal("no tier is being emptied")])];
    assert_eq!(asked(refused, &Request::Cancel), Err("no tier is being emptied".to_owned()));
    let lost = asked(vec![Act::Say(Request::Drop, vec![])], &Request::Drop).unwrap_err();
    assert!(lost.contains("broke off before its last word"), "{lost}");
}

#[test]
fn what_is_no_reply_of_this_version_is_said() {
    let babble = |text| asked(vec![Act::Babble(text)], &Request::Tiers).unwrap_err();
    assert!(babble("{\"version\":2,\"kind\":\"done\"}\n").contains("version 2"));
    assert!(babble("hello\n").contains("no JSON"));
}

#[test]
fn a_missing_socket_is_named() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("none.control");
    let follow = || Socket::at(&path).follow(&Request::Tiers, &mut |_| (), &|| false);
    let Outcome::Unreachable(why) = follow() else { panic!() };
    assert!(why.contains("none.control") && why.contains("the socket is missing"), "{why}");
    drop(UnixListener::bind(&path).unwrap());
    let Outcome::Unreachable(why) = follow() else { panic!() };
    assert!(why.contains("try again"), "{why}");
}

#[test]
fn a_tier_answers_to_its_order_image_and_uuid() {
    let tiers = two_tiers().tiers;
    for name in ["1", "/dev/nvme0n1p3", "/dev/./nvme0n1p3", "1f2e"] {
        assert_eq!(find(&tiers, name), Ok(&tiers[1]), "{name}");
    }
    assert_eq!(find(&tiers, "0"), Ok(&tiers[0]));
    let why = find(&tiers, "7").unwrap_err().to_string();
    assert!(why.ends_with("there are 0 zmem, 1 log /dev/nvme0n1p3"), "{why}");
    assert!(find(&tiers, "").is_err());
}
