//! Stubs in files; exports in memory.

use super::*;
use crate::write::{Medium, write_format};
use crate::{FormatRequest, Formatted, MemberSpec, format_image};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;
use swapfs_format::PAGE_LEN;
use swapfsd::backend::device::BlockDevice;
use swapfsd::sys::file::Discarded;
use tempfile::TempDir;

/// An export.
#[derive(Debug)]
struct Memory(Mutex<Vec<u8>>);

impl BlockDevice for Memory {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<(), i32> {
        let bytes = self.0.lock().unwrap();
        let end = offset_bytes as usize + buffer.len();
        buffer.copy_from_slice(bytes.get(offset_bytes as usize..end).ok_or(libc::EINVAL)?);
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset_bytes: u64) -> Result<(), i32> {
        let mut bytes = self.0.lock().unwrap();
        let end = offset_bytes as usize + buffer.len();
        let place = bytes.get_mut(offset_bytes as usize..end).ok_or(libc::EINVAL)?;
        place.copy_from_slice(buffer);
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> Result<Discarded, i32> {
        Err(libc::EOPNOTSUPP)
    }

    fn flush(&self) -> Result<(), i32> {
        Ok(())
    }

    fn lock(&self) -> std::io::Result<()> {
        Ok(())
    }
}

const MIB: u64 = 1 << 20;

fn export(bytes: u64) -> (Arc<Memory>, Export) {
    let memory = Arc::new(Memory(Mutex::new(vec![0; bytes as usize])));
    let export = Export::of("nbd://x/".to_owned(), memory.clone(), bytes).unwrap();
    (memory, export)
}

fn folder() -> TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn format(request: &FormatRequest) -> Result<Formatted, Error> {
    let _alone = crate::write::tests::alone();
    format_image(request, &mut |_, _| ControlFlow::Continue(()))
}

fn request(image: &Path, options: &str) -> FormatRequest {
    let mut request = FormatRequest::new(image);
    request.type_name = REMOTE.name.to_owned();
    request.volume_bytes = Some(64 * MIB);
    request.options = options.to_owned();
    request
}

#[test]
fn alone_it_is_refused_without_force() {
    let folder = folder();
    let image = folder.path().join("image");
    let mut request = request(&image, "url=redis://a,b:2,cluster=on,capacity=1G");
    let error = format(&request).unwrap_err().to_string();
    for part in ["waits for the network", "-t tier", "--member remote:PATH,url=URL", "use -f"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!image.exists());
    request.force = true;
    let formatted = format(&request).unwrap();
    let remote = formatted.remote.as_ref().unwrap();
    assert_eq!((remote.url.as_str(), remote.layout), ("redis://a:6379,b:2", "objects"));
    assert_eq!((remote.capacity_bytes, remote.deadline_ms), (1 << 30, 30_000));
    assert!(formatted.superblock.is_ghost() && !formatted.superblock.is_member());
    assert_eq!(formatted.superblock.volume_bytes(), 64 * MIB);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 8192);
    let text = crate::cli::describe(&formatted);
    assert!(
        text.contains("at redis://a:6379,b:2: the server is looked for at the mount"),
        "{text}"
    );
    assert!(text.contains("layout   objects, 1 GiB at most"), "{text}");
    // Both reasons for -f are said.
    request.force = false;
    let error = format(&request).unwrap_err().to_string();
    assert!(error.contains("waits for the network"), "{error}");
    assert!(error.contains("holds a swapfs volume of type remote"), "{error}");
}

#[test]
fn what_is_wrong_with_the_options_comes_first() {
    let folder = folder();
    let image = folder.path().join("image");
    let refused = |options: &str| format(&request(&image, options)).unwrap_err().to_string();
    assert!(refused("").contains("option 'url': must be given"));
    assert!(refused("url=nbd://a,replicas=1").contains("'replicas': only with a redis://"));
    assert!(refused("url=redis://a,layout=log").contains("'layout': only with an nbd://"));
    assert!(refused("url=redis://a,b").contains("'url': several servers are nodes of one cluster"));
    let mut sizeless = request(&image, "url=redis://a");
    (sizeless.volume_bytes, sizeless.force) = (None, true);
    assert!(format(&sizeless).unwrap_err().to_string().contains("size with -s"));
    assert!(!image.exists());
}

#[test]
fn a_stub_is_a_member() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let member = |text: &str| {
        MemberSpec::parse(&format!("remote:{},{text}", path("far").display())).unwrap()
    };
    let tier = |text: &str| {
        let mut request = FormatRequest::new(&path("image"));
        request.type_name = "tier".to_owned();
        let memory = MemberSpec::parse("zmem,limit=64M").unwrap();
        request.members = vec![memory, member(text)];
        request
    };
    let refused = |text: &str| format(&tier(text)).unwrap_err().to_string();
    assert!(refused("high=50,low=40").contains("option 'url': must be given"));
    assert!(refused("url=redis://a").contains("as capacity=SIZE"));
    assert!(refused("url=redis://a,capacity=1G,size=2G").contains("say different things"));
    assert!(refused("url=redis://a,size=8K").contains("too small for a member"));
    assert!(refused("url=redis://a,capacity=1G,segment=1M").contains("'segment': only with"));
    assert!(refused("url=redis://a,capacity=1G,discard=on").contains("'discard': only with"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    let formatted = format(&tier("url=redis://a,b,cluster=on,size=256M,rate=1M")).unwrap();
    let volume = &formatted.superblock;
    assert_eq!(volume.volume_bytes(), 320 * MIB);
    let stub = &formatted.members[0].superblock;
    assert_eq!((stub.type_name.as_str(), stub.member_order), ("remote", 1));
    assert_eq!((stub.volume_uuid, stub.data_bytes), (volume.uuid, 0));
    assert_eq!(stub.options, "url=redis://a,b,cluster=on,rate=1M");
    assert_eq!(volume.members[0].size_bytes, 256 * MIB);
    assert_eq!(volume.members[0].uuid, stub.uuid);
    let text = crate::cli::describe(&formatted);
    assert!(text.contains("member 1 remote:"), "{text}");
    assert!(text.contains("data     at redis://a:6379,b:6379: the server is looked for"), "{text}");
    assert!(text.contains("layout   objects, 256 MiB at most"), "{text}");
    let image = swapfsd::image::Image::open(&path("far"), swapfsd::image::Access::ReadOnly);
    assert_eq!(&image.unwrap().load_member(volume.uuid).unwrap(), stub);
}

#[test]
fn an_export_gets_superblocks_of_its_own() {
    // blkid is a child, which must not hold another test's image for a moment.
    let _alone = crate::write::tests::alone();
    let (memory, export) = export(16 * MIB + 4097);
    let stub = Uuid::from_u128(7);
    let name = PathBuf::from("nbd://x/");
    let plan = planned(name, MemberKind::Log, export, None, None, stub).unwrap();
    let superblock = plan.superblock.clone();
    assert_eq!((superblock.volume_uuid, superblock.member_order), (stub, 1));
    assert_eq!(superblock.type_name, "log");
    assert_eq!(superblock.backup_offset_bytes, 16 * MIB);
    memory.0.lock().unwrap().fill(0xa5);
    let mut export = plan.export.clone().unwrap();
    write_format(&mut export, &plan, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let pair = export.read_superblocks();
    assert_eq!(pair.primary.as_ref(), Ok(&superblock));
    assert_eq!((pair.backup.as_ref(), pair.backup_offset_bytes), (Ok(&superblock), 16 * MIB));
    let bytes = memory.0.lock().unwrap();
    assert!(bytes[PAGE_LEN..MIB as usize].iter().all(|byte| *byte == 0));
    let data = superblock.data_offset_bytes as usize;
    assert!(bytes[data..data + 2 * PAGE_LEN].iter().all(|byte| *byte == 0));
    drop(bytes);
    // Now it holds something.
    let held = export.holds().unwrap().unwrap();
    assert_eq!(held, format!("a member of the swapfs tier volume {stub}, of type log"));
    // Where one superblock is left, also.
    export.write(0, &[0; PAGE_LEN]).unwrap();
    assert!(export.holds().unwrap().unwrap().starts_with("a member of the swapfs"));
}

#[test]
fn an_export_that_holds_something_is_known() {
    // blkid is a child, which must not hold another test's image for a moment.
    let _alone = crate::write::tests::alone();
    let (memory, export) = export(4 * MIB);
    assert_eq!(export.holds().unwrap(), None);
    memory.0.lock().unwrap()[4086..4096].copy_from_slice(b"SWAPSPACE2");
    memory.0.lock().unwrap()[1024] = 1;
    memory.0.lock().unwrap()[1028..1030].copy_from_slice(&[0xff, 0x03]);
    assert_eq!(export.holds().unwrap().as_deref(), Some("a swap area"));
    memory.0.lock().unwrap()[..8].copy_from_slice(b"swapfs\r\n");
    assert_eq!(export.holds().unwrap().as_deref(), Some("a damaged swapfs volume"));
}

#[test]
fn an_export_that_is_too_small_says_how_much_it_needs() {
    let plan = |bytes, kind, data_bytes| {
        let name = PathBuf::from("nbd://x/");
        planned(name, kind, export(bytes).1, None, data_bytes, Uuid::from_u128(7))
            .map(|plan| plan.superblock.data_bytes)
            .map_err(|error| error.to_string())
    };
    assert_eq!(plan(4 * MIB, MemberKind::Linear, Some(MIB)), Ok(MIB));
    assert_eq!(plan(4 * MIB, MemberKind::Linear, None), Ok(3 * MIB - 4096));
    assert!(plan(MIB, MemberKind::Linear, None).unwrap_err().contains("are needed"));
    assert!(plan(4 * MIB, MemberKind::Log, Some(8 * MIB)).unwrap_err().contains("has 4 MiB"));
}
