//! Members that are held and forgotten over a link, whose other side is the test.

use super::*;
use crate::members::is_same_file;
use std::thread;

fn file() -> File {
    tempfile::tempfile().unwrap()
}

/// A keeper without members, and the supervisor's end of its link.
fn keeper(patience: Duration) -> (Arc<LinkKeeper>, Link) {
    let (ours, theirs) = Link::pair().unwrap();
    let image = file();
    let holdings = Holdings::from_files(|index| match index {
        1 | 8.. => image.try_clone().ok(),
        _ => Some(file()),
    });
    let mut keeper = LinkKeeper::new(holdings.unwrap(), ours);
    keeper.patience = patience;
    (Arc::new(keeper), theirs)
}

fn held(keeper: &Arc<LinkKeeper>) -> Vec<usize> {
    let image = keeper.state.lock().holdings.image.try_clone().unwrap();
    let members = keeper.members(&image).unwrap();
    (0..MAX_DEVICE_MEMBERS).filter(|place| members.files[*place].is_some()).collect()
}

/// Does what a main thread does with the next packet.
fn hear(keeper: &LinkKeeper, link: &Link) {
    match link.next().unwrap() {
        Some(packet) => keeper.answered(packet.payload()),
        None => keeper.bereft(),
    }
}

fn reply(link: &Link, asked: Asked, errno: i32) {
    link.say(Kind::MemberHeld, &Answered { asked, errno }.encode()).unwrap();
}

#[test]
fn a_member_is_held_and_forgotten_when_the_supervisor_says_so() {
    let (keeper, supervisor) = keeper(PATIENCE);
    let main = keeper.state.lock().link.as_ref().unwrap().try_clone().unwrap();
    let member = file();
    thread::scope(|scope| {
        let asking = scope.spawn(|| keeper.hold(3, &member));
        let mut packet = supervisor.next().unwrap().unwrap();
        assert_eq!(packet.kind(), Some(Kind::HoldMember));
        let asked = Asked::decode(packet.payload()).unwrap();
        assert_eq!(asked.place, 3);
        assert!(is_same_file(&member, &packet.file(0).unwrap()).unwrap());
        assert!(held(&keeper).is_empty(), "not before it is agreed to");
        reply(&supervisor, asked, 0);
        hear(&keeper, &main);
        asking.join().unwrap().unwrap();
    });
    assert_eq!(held(&keeper), [3]);
    // What a new supervisor is handed.
    let (new, link) = Link::pair().unwrap();
    let handed = keeper.hand_over(|holdings| {
        assert!(is_same_file(&member, &holdings.members[3])?);
        Ok(((), new))
    });
    drop((handed.unwrap(), main, supervisor));
    let main = keeper.state.lock().link.as_ref().unwrap().try_clone().unwrap();
    thread::scope(|scope| {
        let asking = scope.spawn(|| keeper.forget(3));
        let packet = link.next().unwrap().unwrap();
        assert_eq!(packet.kind(), Some(Kind::ForgetMember));
        reply(&link, Asked::decode(packet.payload()).unwrap(), 0);
        hear(&keeper, &main);
        asking.join().unwrap().unwrap();
    });
    assert!(held(&keeper).is_empty());
    assert_eq!(keeper.hold(8, &member).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_refusal_is_an_error_and_holds_nothing() {
    let (keeper, supervisor) = keeper(PATIENCE);
    let main = keeper.state.lock().link.as_ref().unwrap().try_clone().unwrap();
    thread::scope(|scope| {
        let asking = scope.spawn(|| keeper.hold(0, &file()));
        let asked = Asked::decode(supervisor.next().unwrap().unwrap().payload()).unwrap();
        reply(&supervisor, asked, libc::EBUSY);
        hear(&keeper, &main);
        let error = asking.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    });
    assert!(held(&keeper).is_empty());
}

#[test]
fn an_answer_that_comes_too_late_has_no_effect() {
    let (keeper, supervisor) = keeper(Duration::from_millis(20));
    let main = keeper.state.lock().link.as_ref().unwrap().try_clone().unwrap();
    let error = keeper.hold(1, &file()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    let asked = Asked::decode(supervisor.next().unwrap().unwrap().payload()).unwrap();
    // It is called off.
    let packet = supervisor.next().unwrap().unwrap();
    assert_eq!(packet.kind(), Some(Kind::ForgetMember));
    assert_eq!(Asked::decode(packet.payload()).unwrap(), Asked { place: 1, number: 0 });
    reply(&supervisor, asked, 0);
    hear(&keeper, &main);
    assert!(held(&keeper).is_empty());
    // Nor is it taken for the answer to the next one.
    thread::scope(|scope| {
        let asking = scope.spawn(|| keeper.hold(1, &file()));
        let next = Asked::decode(supervisor.next().unwrap().unwrap().payload()).unwrap();
        assert_ne!(next, asked);
        reply(&supervisor, asked, 0);
        hear(&keeper, &main);
        assert!(asking.join().unwrap().is_err());
    });
}

#[test]
fn without_a_supervisor_members_are_forgotten_but_not_held() {
    let (keeper, supervisor) = keeper(PATIENCE);
    let main = keeper.state.lock().link.as_ref().unwrap().try_clone().unwrap();
    let member = file();
    let hold = |place: usize| {
        thread::scope(|scope| {
            let asking = scope.spawn(|| keeper.hold(place, &member));
            let asked = Asked::decode(supervisor.next().unwrap().unwrap().payload()).unwrap();
            reply(&supervisor, asked, 0);
            hear(&keeper, &main);
            asking.join().unwrap().unwrap();
        });
    };
    hold(2);
    hold(5);
    // It dies while it is asked.
    thread::scope(|scope| {
        let asking = scope.spawn(|| keeper.hold(4, &member));
        supervisor.next().unwrap().unwrap();
        drop(supervisor.try_clone());
        keeper.bereft();
        let error = asking.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    });
    let error = keeper.hold(4, &member).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    keeper.forget(5).unwrap();
    assert_eq!(held(&keeper), [2]);
}
