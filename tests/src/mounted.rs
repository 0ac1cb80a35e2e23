//! A volume that is formatted and mounted for a test, and taken down when the test ends.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// How long anything that ends by itself may take, on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(30);

/// The programs, each run under its own name.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// `binary` is this package's `programs`: `env!("CARGO_BIN_EXE_programs")`.
    #[must_use]
    pub fn new(binary: &str) -> Programs {
        Programs(PathBuf::from(binary))
    }

    /// A command that runs `name`.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.arg0(name).stdin(std::process::Stdio::null());
        command
    }

    /// Runs `name` to its end.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn run<A: AsRef<OsStr>>(&self, name: &str, arguments: &[A]) -> Output {
        self.command(name).args(arguments).output().unwrap()
    }

    /// Runs `name`, which must succeed; answers its standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn succeed<A: AsRef<OsStr>>(&self, name: &str, arguments: &[A]) -> String {
        let output = self.run(name, arguments);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{name}: {:?}\n{out}{err}", output.status);
        out
    }

    /// Runs `name`, which must fail with `status`; answers its standard error.
    ///
    /// # Panics
    /// If it succeeds, or fails otherwise.
    pub fn fail<A: AsRef<OsStr>>(&self, name: &str, arguments: &[A], status: i32) -> String {
        let output = self.run(name, arguments);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(status), "{name}: {out}{err}");
        err
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Why tests that mount can't run here, if they can't.
#[must_use]
pub fn cannot_mount() -> Option<&'static str> {
    if !swapfsd::sys::process::is_root() {
        Some("not root")
    } else if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        Some("no /dev/fuse")
    } else {
        None
    }
}

/// Why tests that attach a loop device can't run here, if they can't.
#[must_use]
pub fn cannot_attach() -> Option<&'static str> {
    match cannot_mount() {
        None if !Path::new("/dev/loop-control").exists() => Some("no /dev/loop-control"),
        why => why,
    }
}

/// Why tests of FUSE over io_uring can't run here, if they can't. `tests/run` switches it on.
#[must_use]
pub fn cannot_use_rings() -> Option<&'static str> {
    cannot_attach().or_else(|| match swapfsd::fuse::uring::is_enabled() {
        None => Some("the kernel's FUSE has no io_uring"),
        Some(false) => Some("FUSE over io_uring is off (fuse.enable_uring)"),
        Some(true) => None,
    })
}

/// Says that a test is skipped, in words that `tests/run` counts.
#[macro_export]
macro_rules! skip_if {
    ($why:expr) => {
        if let Some(why) = $why {
            println!("SKIPPED {}: {why}", module_path!());
            eprintln!("SKIPPED {}: {why}", module_path!());
            return;
        }
    };
}

/// A folder on a real file system that goes when the test ends.
///
/// # Panics
/// If it can't be made.
#[must_use]
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("swapfs-test-").tempdir_in("/var/tmp").unwrap()
}

/// A mounted volume.
#[derive(Debug)]
pub struct Mounted {
    /// The programs it was made with.
    pub programs: Programs,
    /// The image.
    pub image: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
}

impl Mounted {
    /// Formats `folder`/image with `format` (arguments of mkswapfs) and mounts it with `options`.
    ///
    /// # Panics
    /// If either fails.
    #[must_use]
    pub fn new(programs: &Programs, folder: &Path, format: &[&str], options: &str) -> Mounted {
        let image = folder.join("image");
        let mut arguments: Vec<&OsStr> = format.iter().map(OsStr::new).collect();
        arguments.push(image.as_os_str());
        programs.succeed("mkswapfs", &arguments);
        Mounted::existing(programs, &image, options)
    }

    /// The same of an image that is there before, of `image_bytes`: a log may be larger than its
    /// volume, and has to be where nothing compresses.
    ///
    /// # Panics
    /// If it can't be made, formatted or mounted.
    #[must_use]
    pub fn with_image(
        programs: &Programs,
        folder: &Path,
        image_bytes: u64,
        format: &[&str],
        options: &str,
    ) -> Mounted {
        let image = fs::File::create_new(folder.join("image")).unwrap();
        image.set_len(image_bytes).unwrap();
        Mounted::new(programs, folder, format, options)
    }

    /// Mounts an image that is formatted.
    ///
    /// # Panics
    /// If it can't be mounted.
    #[must_use]
    pub fn existing(programs: &Programs, image: &Path, options: &str) -> Mounted {
        let mountpoint = image.with_extension("mnt");
        fs::create_dir_all(&mountpoint).unwrap();
        let mut arguments = vec![image.as_os_str(), mountpoint.as_os_str()];
        if !options.is_empty() {
            arguments.extend([OsStr::new("-o"), OsStr::new(options)]);
        }
        programs.succeed("swapfsd", &arguments);
        Mounted { programs: programs.clone(), image: image.to_owned(), mountpoint }
    }

    /// The swap file.
    #[must_use]
    pub fn swap_file(&self) -> PathBuf {
        self.mountpoint.join("swapfile")
    }

    /// The parsed stats.json.
    ///
    /// # Panics
    /// If it is not JSON.
    #[must_use]
    pub fn stats(&self) -> serde_json::Value {
        let text = fs::read(self.mountpoint.join("stats.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// A number of stats.json; 0 where it says null.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        self.stats()[name].as_u64().unwrap_or(0)
    }

    /// Process id of the daemon: of the supervisor, where there is one.
    ///
    /// # Panics
    /// If stats.json does not say.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let stats = self.stats();
        let pid = stats["supervisor_pid"].as_u64().or_else(|| stats["pid"].as_u64());
        pid.unwrap() as u32
    }

    /// Unmounts, and waits until the daemon has gone.
    ///
    /// # Panics
    /// If it does not come down.
    pub fn unmount(&self) {
        let pid = self.pid();
        let started = Instant::now();
        // A file that was just closed may hold the mount a moment longer.
        while let Err(error) = swapfsd::sys::mount::unmount(&self.mountpoint) {
            assert!(started.elapsed() < LIMIT, "unmount: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
        wait_until_gone(pid);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After a failure too, nothing stays mounted. Does nothing after `unmount`.
        let _ = Command::new("umount").args(["-l", "-q"]).arg(&self.mountpoint).output();
    }
}

/// Sends a signal to a process that this test started.
///
/// # Panics
/// If there is no such process id.
pub fn kill(pid: u64, signal: i32) {
    assert!(pid > 1, "0 would be this test and all around it");
    // SAFETY: no memory is passed; the process is one that this test started.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Waits until `done`, for up to a minute: how long it takes is not the test.
///
/// # Panics
/// If it takes longer.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a process is dead, or a zombie that nobody has waited for.
///
/// # Panics
/// If it lives on.
pub fn wait_until_dead(pid: u64) {
    wait_until("a process to die", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    });
}

/// Waits until a process has ended.
///
/// # Panics
/// If it does not.
pub fn wait_until_gone(pid: u32) {
    let started = Instant::now();
    let process = PathBuf::from(format!("/proc/{pid}"));
    while process.exists() {
        assert!(started.elapsed() < LIMIT, "process {pid} has not ended");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A loop device as `swapfs up` makes them: direct I/O, blocks of 4 KiB.
#[derive(Debug)]
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    /// Attaches a device to `file`, by losetup: a second opinion on what `swapfs up` does.
    ///
    /// # Panics
    /// If that fails, or the device has no direct I/O.
    #[must_use]
    pub fn attach(file: &Path) -> LoopDevice {
        let output = Command::new("losetup")
            .args(["--direct-io=on", "--sector-size", "4096", "-f", "--show"])
            .arg(file)
            .output()
            .unwrap();
        let (out, err) = texts(&output);
        assert!(output.status.success(), "losetup: {err}");
        let device = LoopDevice(PathBuf::from(out.trim()));
        assert_eq!(device.queue("../loop/dio"), "1", "no direct I/O");
        device
    }

    /// A file of the device's queue in sysfs.
    ///
    /// # Panics
    /// If it can't be read.
    #[must_use]
    pub fn queue(&self, name: &str) -> String {
        let device = self.0.file_name().unwrap().to_str().unwrap();
        let path = format!("/sys/block/{device}/queue/{name}");
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
            .trim()
            .to_owned()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).output();
    }
}
