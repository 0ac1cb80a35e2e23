use super::*;
use crate::member::{MemberKind, MemberOptions};
use crate::types::{BackendOptions, REMOTE};
use proptest::prelude::*;

fn volume(text: &str) -> Result<RemoteVolumeOptions, String> {
    match REMOTE.parse_options(text).map_err(|error| error.to_string())?.backend {
        BackendOptions::Remote(options) => Ok(options),
        other => panic!("{other:?}"),
    }
}

fn member(text: &str) -> Result<MemberOptions, String> {
    MemberOptions::parse(MemberKind::Remote, text).map_err(|error| error.to_string())
}

#[test]
fn the_address_must_be_given() {
    let error = volume("").unwrap_err();
    assert!(error.starts_with("option 'url': must be given: redis://HOST"), "{error}");
    assert!(member("high=50,low=40").unwrap_err().contains("'url': must be given"));
    assert!(volume("url=").unwrap_err().contains("'url': must be given"));
    assert!(volume("url=ftp://a").unwrap_err().contains("is of no kind that is known"));
    assert!(volume("url").unwrap_err().contains("write url=VALUE"));
}

#[test]
fn defaults_are_those_of_the_table() {
    let options = volume("url=redis://a").unwrap();
    assert_eq!(
        options.remote,
        RemoteOptions {
            url: "redis://a:6379".parse().unwrap(),
            cluster: false,
            auth: None,
            connections: None,
            deadline: Duration::from_secs(30),
            replicas: 0,
            layout: RemoteLayout::Objects,
            capacity_bytes: None,
        }
    );
    assert_eq!(options.zmem.limit_bytes, Some(64 << 20));
    assert_eq!(options.zmem.reserve_bytes, 16 << 20);
    assert_eq!(options.zmem.recompress, None);
    assert!(!options.zmem.dedup);
    assert_eq!(volume("url=nbd://a").unwrap().remote.layout, RemoteLayout::Log);
    let linear = volume("layout=linear,url=nbd://a").unwrap().remote;
    assert_eq!(linear.layout, RemoteLayout::Linear);
}

#[test]
fn each_option_has_its_place() {
    let text = "url=rediss://a:1,[::1]:2,cluster=on,auth=/etc/swapfs/auth,connections=3,\
                deadline-ms=500,replicas=2,capacity=1G,algo=zstd:2,buffer=8M,reserve=2M";
    let options = volume(text).unwrap();
    let remote = options.remote;
    assert_eq!(remote.url.to_string(), "rediss://a:1,[::1]:2");
    assert!(remote.cluster && remote.replicas == 2 && remote.connections == Some(3));
    assert_eq!(remote.auth.as_deref(), Some("/etc/swapfs/auth"));
    assert_eq!(
        (remote.deadline, remote.capacity_bytes),
        (Duration::from_millis(500), Some(1 << 30))
    );
    assert_eq!(options.zmem.algorithm, Algorithm::Zstd { level: 2 });
    assert_eq!((options.zmem.limit_bytes, options.zmem.reserve_bytes), (Some(8 << 20), 2 << 20));
    let text =
        "url=nbd+unix:///x?socket=/run/a=b.sock,segment=1M,rate=2M,high=50,low=40,discard=off";
    let options = member(text).unwrap();
    assert_eq!(options.segment_bytes, Some(1 << 20));
    assert_eq!((options.high_percent, options.rate_bytes), (50, Some(2 << 20)));
    let remote = options.remote.unwrap();
    assert_eq!(remote.url.to_string(), "nbd+unix:///x?socket=/run/a=b.sock");
    assert!(member("buffer=8M").unwrap_err().contains("has no such option"));
    assert!(volume("url=nbd://a,segment=1M").unwrap_err().contains("has no such option"));
}

#[test]
fn nodes_belong_to_the_address_before_them() {
    let options = volume("url=redis://a:1, b:2 ,[::1],cluster=on").unwrap().remote;
    assert_eq!(options.url.to_string(), "redis://a:1,b:2,[::1]:6379");
    assert!(options.cluster);
    // A name that is a key needs its port.
    let error = volume("url=redis://a,cluster").unwrap_err();
    assert_eq!(error, "option 'cluster': no value: write cluster=VALUE");
    assert!(volume("url=redis://a,cluster:1").is_ok());
    // Elsewhere an entry without a value is none.
    assert!(volume("url=redis://a,cluster=on,b:2").unwrap_err().contains("'b:2'"));
    assert!(volume("url=nbd://a,b").unwrap_err().contains("'nbd://a,b' is not allowed"));
}

#[test]
fn options_go_with_the_kind_of_address() {
    for (text, key) in [
        ("url=redis://a,layout=log", "layout"),
        ("url=nbd://a,cluster=off", "cluster"),
        ("replicas=1,url=nbd://a", "replicas"),
        ("auth=/etc/x,url=nbd://a", "auth"),
    ] {
        let error = volume(text).unwrap_err();
        assert!(error.starts_with(&format!("option '{key}': only with")), "{text}: {error}");
    }
    assert!(member("url=redis://a,segment=1M").unwrap_err().contains("'segment': only with"));
    let error = member("url=nbd://a,layout=linear,segment=1M").unwrap_err();
    assert!(error.contains("only with layout=log"), "{error}");
}

#[test]
fn a_mount_may_name_another_address_of_the_same_kind() {
    let mount = |header: &str, mount: &str| {
        let merged = REMOTE.mount_options(header, mount);
        merged.map(|(_, text)| text).map_err(|error| error.to_string())
    };
    let moved = mount("url=redis://a,b,cluster=on,deadline-ms=100", "url=rediss://c:1,d");
    assert_eq!(moved.as_deref(), Ok("cluster=on,deadline-ms=100,url=rediss://c:1,d"));
    let error = mount("url=redis://a", "url=nbd://b").unwrap_err();
    assert!(error.contains("formatted for redis://a:6379: an address of another kind"), "{error}");
    assert!(mount("url=nbd://a", "layout=linear").unwrap_err().contains("fixed when"));
    assert!(mount("url=redis://a", "capacity=1G").is_ok());
    let error =
        MemberOptions::merged(MemberKind::Remote, "url=redis://a,capacity=1G", "capacity=2G");
    assert!(error.unwrap_err().to_string().contains("fixed when"));
}

/// An address, as anybody might write it.
fn address() -> impl Strategy<Value = String> {
    let host =
        prop_oneof!["[a-z][a-z0-9.-]{0,12}", Just("[fe80::1]".to_owned()), "10\\.0\\.0\\.[1-9]"];
    let node = (host, proptest::option::of(1u16..));
    let node = node.prop_map(|(host, port)| match port {
        Some(port) => format!("{host}:{port}"),
        // A host may be called as a key is: then it needs its port.
        None if REMOTE.option(&host).is_some() => format!("{host}:1"),
        None => host,
    });
    let nodes = proptest::collection::vec(node.clone(), 1..5).prop_map(|nodes| nodes.join(","));
    prop_oneof![
        (any::<bool>(), nodes).prop_map(|(tls, nodes)| {
            format!("{}://{nodes}", if tls { "rediss" } else { "redis" })
        }),
        (node, "[a-z/_.=-]{0,12}").prop_map(|(node, export)| format!("nbd://{node}/{export}")),
        ("[a-z/_.-]{0,12}", "[a-z=/.]{1,12}")
            .prop_map(|(export, path)| format!("nbd+unix:///{export}?socket=/{path}")),
    ]
}

/// The address, and entries around it that go with any.
fn valid_text() -> impl Strategy<Value = (String, String)> {
    let others = (
        proptest::option::of(100u32..=600_000),
        proptest::option::of(1u32..=64),
        proptest::option::of(prop_oneof!["/[a-z =]{1,8}x", Just(String::new())]),
        proptest::option::of(1u64..1 << 20),
    );
    (address(), others, 0usize..5).prop_map(|(url, (deadline, connections, auth, mib), at)| {
        let others = [
            deadline.map(|ms| format!("deadline-ms={ms}")),
            connections.map(|count| format!("connections={count}")),
            // None of an NBD server.
            auth.filter(|_| url.starts_with("redis")).map(|path| format!("auth={path}")),
            mib.map(|mib| format!("capacity={mib}M")),
        ];
        let mut entries: Vec<String> = others.into_iter().flatten().collect();
        entries.insert(at.min(entries.len()), format!("url={url}"));
        (url, entries.join(","))
    })
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_the_same((url, text) in valid_text()) {
        let options = volume(&text).unwrap();
        prop_assert_eq!(&options.remote.url, &url.parse().unwrap());
        let (same, printed) = REMOTE.mount_options(&text, "").unwrap();
        prop_assert_eq!(same.backend, BackendOptions::Remote(options.clone()));
        prop_assert_eq!(&volume(&printed).unwrap(), &options);
        // Also when a mount gives it all again, in whatever order.
        let (_, again) = REMOTE.mount_options(&printed, &text).unwrap();
        prop_assert_eq!(&volume(&again).unwrap(), &options);
        let merged = MemberOptions::merged(MemberKind::Remote, &text, "high=50,low=40").unwrap();
        let of_member = member(&merged).unwrap();
        prop_assert_eq!(of_member.high_percent, 50);
        prop_assert_eq!(of_member.remote.unwrap(), options.remote);
    }

    #[test]
    fn an_address_is_what_it_prints(text in address()) {
        let url: RemoteUrl = text.parse().unwrap();
        prop_assert_eq!(&url.to_string().parse::<RemoteUrl>().unwrap(), &url);
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}", nodes in "[a-z0-9:,=?/\\[\\]@ ]{0,60}") {
        let _ = volume(&text);
        let _ = volume(&format!("url=redis://{nodes}"));
        let _ = volume(&format!("url=nbd+unix:///{nodes}"));
        let _ = member(&format!("url=nbd://{nodes}"));
    }
}
