//! TLS: a server whose certificate we know, one that we don't, and our own.

use super::*;
use crate::remote::testing::{RedisServer, free_port, installed};
use std::path::Path;
use std::process::{Command, Stdio};

fn openssl(directory: &Path, arguments: &str) {
    let status = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "{arguments}");
}

/// `ca.crt`, `server.crt` for 127.0.0.1, `client.crt`, and their keys.
fn certificates(directory: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(directory, &format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=ca"));
    for (name, more) in [("server", " -addext subjectAltName=IP:127.0.0.1"), ("client", "")] {
        let extensions = "-addext basicConstraints=critical,CA:FALSE";
        openssl(
            directory,
            &format!(
                "req -x509 {key} -keyout {name}.key -out {name}.crt -subj /CN={name} -CA ca.crt \
                 -CAkey ca.key {extensions}{more}"
            ),
        );
    }
}

#[test]
fn rediss() {
    if !installed("openssl") {
        return;
    }
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    certificates(directory.path());
    let path = |name: &str| directory.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let port = free_port();
    let started = RedisServer::start(&[
        "--port",
        "0",
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &text("server.crt"),
        "--tls-key-file",
        &text("server.key"),
        "--tls-ca-cert-file",
        &text("ca.crt"),
        "--tls-auth-clients",
        "yes",
    ]);
    let Some(_server) = started else { return };
    let mut settings = settings(port, 2000);
    settings.server.tls = true;
    settings.server.credentials = Credentials {
        ca: Some(path("ca.crt")),
        cert: Some(path("client.crt")),
        key: Some(path("client.key")),
        ..Default::default()
    };
    let store = RedisStore::new(settings.clone()).unwrap();
    store.check().unwrap();
    let all = keys(0..300);
    put(&store, &all).unwrap();
    assert_eq!(get(&store, &all), Ok(300));
    assert_eq!(list(&settings.server).unwrap()[0].runs[0].keys, 300);
    assert_eq!(store.clear(None), Ok(300));
    // Without a certificate of ours.
    let mut anonymous = settings.clone();
    (anonymous.server.credentials.cert, anonymous.server.credentials.key) = (None, None);
    assert!(RedisStore::new(anonymous).unwrap().check().is_err());
    // A server that shows a certificate we don't trust.
    let other = tempfile::tempdir_in("/var/tmp").unwrap();
    certificates(other.path());
    settings.server.credentials.ca = Some(other.path().join("ca.crt"));
    assert_eq!(RedisStore::new(settings.clone()).unwrap().check(), Err(libc::EACCES));
    settings.server.credentials.ca = Some(path("nothing"));
    assert!(RedisStore::new(settings).is_err());
    // What speaks no TLS.
    let plain = self::settings(port, 1000);
    assert!(RedisStore::new(plain).unwrap().check().is_err());
}
