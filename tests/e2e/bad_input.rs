//! What users get wrong, each with the message that says what, why and what next.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use swapfs_format::superblock::Superblock;
use swapfs_tests::mounted::{Mounted, Programs, cannot_attach, cannot_mount, folder};
use swapfs_tests::{skip_if, tiers};

fn programs() -> Programs {
    Programs::new(env!("CARGO_BIN_EXE_programs"))
}

/// A formatted image of 1 MiB, and an empty mount point.
fn image(folder: &Path) -> (PathBuf, PathBuf) {
    let (image, mountpoint) = (folder.join("image"), folder.join("mnt"));
    programs().succeed("mkswapfs", &[Path::new("-s"), Path::new("1M"), &image]);
    fs::create_dir(&mountpoint).unwrap();
    (image, mountpoint)
}

/// Mounting must fail with a message that has all the parts.
fn refused(image: &Path, mountpoint: &Path, options: &[&str], parts: &[&str]) {
    let mut arguments: Vec<&Path> = options.iter().map(Path::new).collect();
    arguments.extend([image, mountpoint]);
    has(&programs().fail("swapfsd", &arguments, 1), "swapfsd: ", parts);
}

fn has(message: &str, start: &str, parts: &[&str]) {
    assert!(message.starts_with(start), "{message}");
    for part in parts {
        assert!(message.contains(part), "no '{part}' in: {message}");
    }
}

/// Changes a superblock's bytes and makes its checksum right again.
fn patch(image: &Path, offset: usize, bytes: &[u8]) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 0).unwrap();
    page[offset..][..bytes.len()].copy_from_slice(bytes);
    let crc = crc32fast::hash(&page[..4092]);
    page[4092..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&page, 0).unwrap();
}

fn zero(image: &Path, offset: u64) {
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(&[0; 4096], offset).unwrap();
}

#[test]
fn damaged_images() {
    skip_if!(cannot_mount());
    let folder = folder();
    let (image, mnt) = image(folder.path());
    let good = fs::read(&image).unwrap();
    let backup = Superblock::decode(&good).unwrap().backup_offset_bytes;
    let restore = || fs::write(&image, &good).unwrap();

    File::options().write(true).open(&image).unwrap().set_len(good.len() as u64 - 4096).unwrap();
    refused(&image, &mnt, &[], &["superblock says", "cut off", &good.len().to_string()]);
    restore();
    zero(&image, 0);
    refused(&image, &mnt, &[], &["wrong magic", "run fsck.swapfs -p"]);
    zero(&image, backup);
    refused(&image, &mnt, &[], &["wrong magic", "no good backup", "mkswapfs"]);
    restore();
    zero(&image, backup);
    // One bad copy, and it is the backup: the volume can be mounted.
    let mounted = Mounted::existing(&programs(), &image, "");
    mounted.unmount();
    restore();
    patch(&image, 32, &[1]);
    refused(&image, &mnt, &[], &["incompatible features 0x1", "use a newer one"]);
    restore();
    patch(&image, 24, &[1]);
    refused(&image, &mnt, &[], &["features 0x1", "no mount"]);
    restore();
    patch(&image, 72, b"nonesuch");
    refused(&image, &mnt, &[], &["unknown type 'nonesuch'", "linear"]);
    restore();
    patch(&image, 512, b"colour=red");
    refused(&image, &mnt, &[], &["option 'colour'", "has no such option", "engine"]);
    restore();
    patch(&image, 512, b"threads=999");
    refused(&image, &mnt, &[], &["'999' is not allowed", "from 1 to 64"]);
    restore();
    patch(&image, 96, &[0; 8]);
    refused(&image, &mnt, &[], &["slot_count: 0"]);
}

#[test]
fn sizes_and_options_of_mkswapfs() {
    let folder = folder();
    let image = folder.path().join("image");
    let refused = |arguments: &[&str], parts: &[&str]| {
        let mut all: Vec<&Path> = arguments.iter().map(Path::new).collect();
        all.push(&image);
        has(&programs().fail("mkswapfs", &all, 1), "mkswapfs: ", parts);
        assert!(!image.exists(), "something was left behind");
    };
    refused(&["-s", "0"], &["the size is 0"]);
    refused(&["-s", "50001"], &["not a multiple of the page", "49152 or 53248"]);
    refused(&["-s", "4K"], &["too small"]);
    refused(&["-s", "17T"], &["too large"]);
    refused(&[], &["does not exist", "-s"]);
    refused(&["-s", "1M", "-t", "nonesuch"], &["unknown type 'nonesuch'", "linear"]);
    refused(&["-s", "1M", "-o", "colour=red"], &["option 'colour'", "engine"]);
    refused(&["-s", "1M", "-o", "engine=fast"], &["'fast' is not allowed", "sync, uring"]);
    refused(&["-s", "1M", "-L", "a label that is too long"], &["label", "at most 16"]);
    refused(&["-s", "1M", "--member", "x"], &["--member x", "has no members"]);
    refused(&["-t", "tier"], &["has no image to store pages in", "--member"]);
    refused(&["-t", "tier", "--member", "zmem"], &["has no image to store pages in"]);
    refused(&["-s", "1M", "--erase-block", "3000"], &["erase block of 3000"]);
    let usage = programs().fail("mkswapfs", &[Path::new("-s"), Path::new("1.5G"), &image], 2);
    assert!(usage.contains("'1.5G' is not a size"), "{usage}");
}

/// Each is refused before anything is written.
#[test]
fn members_of_mkswapfs() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (image, log) = (path("image"), path("log"));
    let refused = |members: &[String], parts: &[&str]| {
        let mut all = vec!["-t".to_owned(), "tier".to_owned()];
        for member in members {
            all.extend(["--member".to_owned(), member.clone()]);
        }
        all.push(image.clone());
        has(&programs().fail("mkswapfs", &all, 1), "mkswapfs: ", parts);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind");
    };
    let member = |text: &str| format!("log:{log},{text}");
    refused(&[format!("log:{log}")], &[&log, "does not exist", "size=SIZE"]);
    refused(&[member("size=4K")], &[&log]);
    refused(&[member("size=8M,colour=red")], &[&log, "option 'colour'", "promote"]);
    refused(&[member("size=8M,promote=sometimes")], &["'sometimes' is not allowed", "second"]);
    refused(&[member("size=8M,low=90,high=80")], &["low", "high"]);
    refused(&[member("size=8M,segment=3000")], &["segment"]);
    refused(&[format!("linear:{log},size=8M,segment=64K")], &["option 'segment'"]);
    refused(&[member("size=8M"), member("size=8M")], &[&log]);
    refused(&[member("size=8M"), format!("linear:{image},size=8M")], &[&image]);
    refused(&[member("size=8M"), "zmem".to_owned()], &["zmem", "first"]);
    refused(&["zmem".to_owned(), "zmem".to_owned(), member("size=8M")], &["zmem"]);
    let nine = |number: u32| format!("linear:{},size=8M", path(&format!("member{number}")));
    refused(&(1..=9).map(nine).collect::<Vec<_>>(), &["8"]);
}

/// Nobody listens at port 1 of this machine. Each is refused before anything is written.
#[test]
fn servers_of_mkswapfs() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let refused = |arguments: &[&str], parts: &[&str]| {
        let mut all: Vec<PathBuf> = arguments.iter().map(PathBuf::from).collect();
        all.push(path("image").into());
        let all: Vec<&Path> = all.iter().map(PathBuf::as_path).collect();
        has(&programs().fail("mkswapfs", &all, 1), "mkswapfs: ", parts);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind");
    };
    let alone = |options: &str, parts: &[&str]| {
        refused(&["-t", "remote", "-f", "-s", "1G", "-o", options], parts);
    };
    alone("buffer=64M", &["option 'url'", "must be given", "redis://HOST"]);
    alone("url=", &["option 'url'", "must be given"]);
    alone("url=http://far", &["'http://far'", "of no kind that is known", "nbd://HOST"]);
    alone("url=redis://me:secret@far", &["'redis://***@far' has a user name or password", "auth="]);
    alone("url=redis://far/3", &["names a database"]);
    alone("url=redis://far:0", &["no port from 1 to 65535"]);
    alone("url=redis://a,cluster", &["option 'cluster'", "write cluster=VALUE"]);
    alone("url=redis://far,layout=log", &["option 'layout'", "only with an nbd:// address"]);
    alone("url=nbd://far/,replicas=1", &["option 'replicas'", "only with a redis:// address"]);
    alone("url=nbd://far/,auth=/etc/a", &["option 'auth'", "only with a redis:// address"]);
    alone("url=redis://far,auth=a", &["option 'auth'", "an absolute path"]);
    alone("url=redis://far,deadline-ms=5", &["'5' is not allowed", "from 100"]);
    alone("url=nbd+unix:///x", &["names no socket"]);
    alone("url=nbd://127.0.0.1:1/x", &["nbd://127.0.0.1:1/x", "start the server"]);
    let text = ["waits for the network", "-t tier", "--member remote:PATH", "use -f"];
    refused(&["-t", "remote", "-s", "1G", "-o", "url=redis://far"], &text);
    refused(&["-t", "remote", "-f", "-o", "url=redis://far"], &["give the volume's size with -s"]);

    let member = |options: &str, parts: &[&str]| {
        let member = format!("remote:{},{options}", path("far"));
        refused(&["-t", "tier", "--member", &member], parts);
    };
    member("capacity=1G", &["option 'url'", "must be given"]);
    member("url=redis://far", &["has no size", "capacity=SIZE"]);
    member("url=redis://far,capacity=4K", &["'4K' is not allowed", "512 KiB"]);
    member("url=redis://far,size=4K", &["too small for a member"]);
    member("url=redis://far,size=1G,capacity=2G", &["leave one of them out"]);
    member("url=redis://far,capacity=1G,segment=1M", &["option 'segment'", "nbd://"]);
    member("url=nbd://far/,layout=linear,segment=1M", &["only with layout=log"]);
    member("url=nbd://127.0.0.1:1/x", &["nbd://127.0.0.1:1/x", "start the server"]);
}

/// What stubs and servers are taken for that they are not.
#[test]
fn servers_of_the_tools() {
    let folder = folder();
    let (plain, _) = image(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let failed = |arguments: &[&str], parts: &[&str]| {
        let all: Vec<&Path> = arguments.iter().map(Path::new).collect();
        has(&programs().fail("swapfs", &all, 1), "swapfs: ", parts);
    };
    let plain = plain.display().to_string();
    failed(&["remote", "gc", "nbd://far/"], &["NBD export", "nothing"]);
    failed(&["remote", "gc", "http://far"], &["of no kind that is known"]);
    failed(
        &["remote", "gc", "redis://u:p@far"],
        &["swapfs: redis://***@far: ", "has a user name or password"],
    );
    failed(&["remote", "gc", &plain], &["of type 'linear'", "redis://HOST"]);
    failed(&["remote", "gc", &path("missing")], &["missing", "no such file"]);
    failed(&["remote", "gc", "--remove", "-f", "redis://far"], &["--force", "--uuid"]);
    let absent = path("absent");
    failed(&["remote", "gc", "--auth", &absent, "redis://far"], &["--auth", &absent]);
    failed(&["remote", "gc", "redis://127.0.0.1:1"], &["redis://127.0.0.1:1", "refused"]);

    // An image that was formatted for one kind of server is not mounted on another.
    let stub = path("stub");
    let options = ["-t", "remote", "-f", "-s", "64M", "-o", "url=redis://127.0.0.1:1", &stub];
    programs().succeed("mkswapfs", &options.map(Path::new));
    refused(
        Path::new(&stub),
        &folder.path().join("mnt"),
        &["-o", "url=nbd://127.0.0.1:1/"],
        &["option 'url'", "formatted for redis://127.0.0.1:1", "another kind"],
    );
}

/// A volume of two members, its images in `folder`, and an empty mount point.
fn tier(folder: &Path) -> (tiers::Formatted, PathBuf) {
    fs::create_dir(folder).unwrap();
    let members = [("log", "2M", "segment=64K"), ("linear", "8M", "")];
    let formatted = tiers::format(&programs(), folder, "3M", tiers::TINY_TOP, &members);
    let mountpoint = folder.join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    (formatted, mountpoint)
}

#[test]
fn members_of_tier_volumes() {
    skip_if!(cannot_mount());
    let folder = folder();
    let (volume, mnt) = tier(&folder.path().join("one"));
    let (other, _) = tier(&folder.path().join("other"));
    let uuid = volume.superblock().uuid.to_string();
    let [log, linear] = [&volume.members[0], &volume.members[1]];
    for member in [log, linear] {
        refused(member, &mnt, &[], &["member", &uuid]);
    }
    let message = programs().fail("mkswapfs", &[Path::new("-s"), Path::new("2M"), log], 1);
    has(&message, "mkswapfs: ", &["use -f"]);
    // Missing, and found again wherever it is: beside the volume, by its UUID.
    let away = folder.path().join("away");
    fs::rename(linear, &away).unwrap();
    let text = linear.display().to_string();
    let missing = ["member 2", "last seen at", &text, "degraded=on"];
    refused(&volume.image, &mnt, &[], &missing);
    // Another volume's member in its place is none of this one's.
    fs::copy(&other.members[1], linear).unwrap();
    refused(&volume.image, &mnt, &[], &missing);
    // Nor is the wrong one of its own.
    fs::copy(log, linear).unwrap();
    refused(&volume.image, &mnt, &[], &["member 2", "degraded=on"]);
    fs::remove_file(linear).unwrap();
    let renamed = linear.with_file_name("renamed");
    fs::rename(&away, &renamed).unwrap();
    let mounted = Mounted::existing(&programs(), &volume.image, "");
    let tiers = mounted.stats()["tiers"].clone();
    assert_eq!(tiers[2]["image"], renamed.display().to_string(), "{tiers}");
    // What is in use is nobody else's.
    let format = [Path::new("-f"), &renamed];
    has(&programs().fail("mkswapfs", &format, 1), "mkswapfs: ", &["in use"]);
    mounted.unmount();
}

#[test]
fn targets_that_hold_something() {
    let folder = folder();
    let image = folder.path().join("image");
    let format = [Path::new("-s"), Path::new("1M"), &image];
    for (maker, found) in [("mkswap", "a swap area"), ("mkfs.ext4", "ext4")] {
        let file = File::create(&image).unwrap();
        file.set_len(8 << 20).unwrap();
        drop(file);
        if Command::new(maker).arg(&image).output().is_err() {
            println!("SKIPPED {maker}: not installed");
            continue;
        }
        let before = fs::read(&image).unwrap();
        let message = programs().fail("mkswapfs", &format, 1);
        has(&message, "mkswapfs: ", &["holds", found, "use -f"]);
        assert!(fs::read(&image).unwrap() == before, "it was changed");
    }
    programs().succeed("mkswapfs", &[&[Path::new("-f")], &format[..]].concat());
    // The old signature is gone: blkid must not find two things.
    let blkid =
        Command::new("blkid").args(["-p", "-o", "value", "-s", "TYPE"]).arg(&image).output();
    assert_eq!(String::from_utf8_lossy(&blkid.unwrap().stdout), "");
}

#[test]
fn images_in_use() {
    skip_if!(cannot_mount());
    let folder = folder();
    let mounted = Mounted::new(&programs(), folder.path(), &["-s", "1M"], "");
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    refused(&mounted.image, &other, &[], &["in use", "mounted"]);
    let format = [Path::new("-f"), &mounted.image];
    has(&programs().fail("mkswapfs", &format, 1), "mkswapfs: ", &["mounted", "unmount it first"]);
    mounted.unmount();
}

#[test]
fn mount_points() {
    skip_if!(cannot_mount());
    let folder = folder();
    let (image, mnt) = image(folder.path());
    refused(&image, &folder.path().join("none"), &[], &["mount point", "No such file", "mkdir"]);
    fs::write(mnt.join("file"), "x").unwrap();
    refused(&image, &mnt, &[], &["mount point", "not empty"]);
    fs::remove_file(mnt.join("file")).unwrap();
    refused(&folder.path().join("none"), &mnt, &[], &["No such file"]);
    refused(folder.path(), &mnt, &[], &["neither a regular file nor a block device"]);
    refused(&image, &mnt, &["-o", "colour=red"], &["option 'colour'"]);
}

/// An image on tmpfs would be swapped to itself.
#[test]
fn images_on_tmpfs() {
    skip_if!(cannot_mount());
    let Ok(shm) = tempfile::tempdir_in("/dev/shm") else {
        println!("SKIPPED images_on_tmpfs: no /dev/shm");
        return;
    };
    let image = shm.path().join("image");
    let message = programs().fail("mkswapfs", &[Path::new("-s"), Path::new("1M"), &image], 1);
    has(&message, "mkswapfs: ", &["on tmpfs", "deadlock", "Put the image on a disk"]);
    let folder = folder();
    let (good, mnt) = self::image(folder.path());
    fs::copy(good, &image).unwrap();
    refused(&image, &mnt, &[], &["on tmpfs", "deadlock", "Put it on a disk"]);
}

/// As another user, and where a device is missing: in a mount namespace of its own.
fn in_namespace(hide: &str, program: &str, arguments: &[&Path]) -> (i32, String) {
    let mut script = String::from("mount --make-rprivate / && ");
    script += hide;
    script += " && exec \"$0\" \"$@\"";
    let programs = PathBuf::from(env!("CARGO_BIN_EXE_programs"));
    // A link with the program's name: exec by a shell can't set another one.
    let folder = folder();
    let link = folder.path().join(program);
    std::os::unix::fs::symlink(programs, &link).unwrap();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .arg(&link)
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn without_dev_fuse() {
    skip_if!(cannot_mount());
    let folder = folder();
    let (image, mnt) = image(folder.path());
    let hide = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3";
    let (status, message) = in_namespace(hide, "swapfsd", &[&image, &mnt]);
    assert_eq!(status, 1, "{message}");
    has(&message, "swapfsd: ", &["/dev/fuse", "modprobe fuse"]);
}

#[test]
fn without_a_free_loop_device() {
    skip_if!(cannot_attach());
    let folder = folder();
    let (image, _) = image(folder.path());
    let up = |hide: &str| {
        in_namespace(hide, "swapfs", &[Path::new("up"), Path::new("--no-swapon"), &image])
    };
    let (status, message) = up("mount --bind /dev/null /dev/loop-control");
    assert_eq!(status, 1, "{message}");
    has(&message, "swapfs: ", &["loop"]);
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(image.to_str().unwrap()), "a failed up left a mount behind");
}

#[test]
fn as_another_user() {
    skip_if!(cannot_mount());
    let folder = folder();
    let (image, mnt) = image(folder.path());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for program in ["swapfsd", "swapfs"] {
        let mut command = programs().command(program);
        match program {
            "swapfs" => command.args([Path::new("up"), Path::new("--no-swapon"), &image]),
            _ => command.args([&image, &mnt]),
        };
        // The build directory may be readable by root only. Copied by another process: a child
        // that another test forks meanwhile would keep a file that we write open, and it could
        // not be run ("Text file busy").
        let copy = folder.path().join(program);
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_programs")).arg(&copy).status();
        assert!(copied.unwrap().success());
        let mut unprivileged = Command::new(&copy);
        unprivileged.args(command.get_args()).uid(65534).gid(65534);
        let output = unprivileged.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        has(&message, &format!("{program}: "), &["root"]);
    }
}

/// A small file system of its own, to fill up.
struct SmallDisk {
    mountpoint: PathBuf,
}

impl SmallDisk {
    fn new(folder: &Path) -> Option<SmallDisk> {
        let (disk, mountpoint) = (folder.join("disk"), folder.join("small"));
        File::create(&disk).unwrap().set_len(24 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&disk).output().ok()?;
        assert!(made.status.success());
        fs::create_dir(&mountpoint).unwrap();
        let mount = Command::new("mount")
            .args(["-o", "loop"])
            .arg(&disk)
            .arg(&mountpoint)
            .output()
            .unwrap();
        assert!(mount.status.success(), "{}", String::from_utf8_lossy(&mount.stderr));
        Some(SmallDisk { mountpoint })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.mountpoint).output();
    }
}

#[test]
fn a_full_disk() {
    skip_if!(cannot_attach());
    let folder = folder();
    let Some(disk) = SmallDisk::new(folder.path()) else {
        println!("SKIPPED a_full_disk: no mkfs.ext4");
        return;
    };
    let image = disk.mountpoint.join("image");
    let message = programs().fail("mkswapfs", &[Path::new("-s"), Path::new("64M"), &image], 1);
    has(&message, "mkswapfs: ", &["the disk is full", "65 MiB are needed", "are free"]);
    assert!(!image.exists(), "a file was left behind");

    // Holes in an image on a disk that fills up afterwards: refused with an error, not lost.
    programs().succeed("mkswapfs", &[Path::new("-s"), Path::new("8M"), &image]);
    let mounted = Mounted::existing(&programs(), &image, "");
    let file = File::options().read(true).write(true).open(mounted.swap_file()).unwrap();
    file.write_all_at(&[7; 4096], 1 << 20).unwrap();
    // SAFETY: no memory is passed.
    let punched = unsafe {
        use std::os::fd::AsRawFd;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        libc::fallocate(file.as_raw_fd(), mode, 2 << 20, 6 << 20)
    };
    assert_eq!(punched, 0);
    let filler = File::create(disk.mountpoint.join("filler")).unwrap();
    let mut at = 0;
    while filler.write_at(&[1; 65536], at).is_ok_and(|count| count > 0) {
        at += 65536;
    }
    while filler.write_at(&[1; 512], at).is_ok_and(|count| count > 0) {
        at += 512;
    }
    filler.sync_all().ok();
    let refused = (512..2048u64)
        .map(|slot| file.write_at(&[slot as u8; 4096], slot * 4096))
        .filter(|result| matches!(result, Err(error) if error.raw_os_error() == Some(libc::ENOSPC)))
        .count();
    assert!(refused > 0, "the disk was not full");
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 1 << 20).unwrap();
    assert_eq!(page, [7; 4096]);
    assert_eq!(mounted.stats()["errors"]["write"], refused);
    drop(file);
    mounted.unmount();
}
