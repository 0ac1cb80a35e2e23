//! `mount.swapfs`: what mount(8) calls for `mount -t swapfs` and for fstab lines.

pub mod options;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: mount.swapfs IMAGE MOUNTPOINT [-sfnv] [-o KEY=VALUE,...]";
/// Exit statuses of mount(8).
const EXIT_USAGE: u8 = 1;
const EXIT_SYSTEM: u8 = 2;
const EXIT_FAILED: u8 = 32;

/// What mount(8) asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    image: PathBuf,
    mount: PathBuf,
    options: String,
    /// `-f`: everything but the mount.
    fake: bool,
    verbose: bool,
    sloppy: bool,
}

/// Why the command line cannot be followed.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Show the text and succeed.
    Help,
    /// Show why and fail.
    Wrong(String),
}

/// Mounts; `arguments` are those behind the program's name. The exit status is one of mount(8):
/// 0, 1 (wrong call, or not root), 2 (system error), 32 (not mounted).
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let request = match parse(arguments) {
        Ok(request) => request,
        Err(Refusal::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Wrong(why)) => {
            eprintln!("mount.swapfs: {why}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if !crate::sys::process::is_root() {
        eprintln!("mount.swapfs: not root: only root can mount: try again with sudo");
        return ExitCode::from(EXIT_USAGE);
    }
    if request.verbose {
        println!(
            "mount.swapfs: {} on {} with options '{}'",
            request.image.display(),
            request.mount.display(),
            request.options
        );
    }
    if request.fake {
        return ExitCode::SUCCESS;
    }
    // A process of its own: it becomes the daemon, and is to have the daemon's name.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("swapfsd");
    if !request.options.is_empty() {
        command.arg("-o").arg(&request.options);
    }
    match command.arg(&request.image).arg(&request.mount).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) if status.code() == Some(2) => ExitCode::from(EXIT_USAGE),
        Ok(_) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            eprintln!("mount.swapfs: swapfsd: cannot start: {error}");
            ExitCode::from(EXIT_SYSTEM)
        }
    }
}

/// By hand, because mount(8) puts the options behind the paths and joins letters (`-fnv`).
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, Refusal> {
    let wrong = |why: String| Refusal::Wrong(format!("{why}: {USAGE}"));
    let mut request = Request::default();
    let mut option_texts: Vec<String> = Vec::new();
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let letters = match argument.to_str() {
            Some("--help" | "-h") => return Err(Refusal::Help),
            Some(text) if text.len() > 1 && text.starts_with('-') => text[1..].to_owned(),
            _ => {
                paths.push(PathBuf::from(argument));
                continue;
            }
        };
        for (place, letter) in letters.char_indices() {
            match letter {
                's' => request.sloppy = true,
                'f' => request.fake = true,
                // No mtab has been written for years.
                'n' => {}
                'v' => request.verbose = true,
                'w' => {}
                'r' => option_texts.push("ro".to_owned()),
                'o' | 't' => {
                    let value = value_of(&letters[place + 1..], &mut arguments)
                        .ok_or_else(|| wrong(format!("-{letter}: no value")))?;
                    // The type is known: it is why we are called.
                    if letter == 'o' {
                        option_texts.push(value);
                    }
                    break;
                }
                'N' => {
                    return Err(Refusal::Wrong(
                        "-N: mounting into another namespace is not possible: use nsenter(1)"
                            .to_owned(),
                    ));
                }
                _ => return Err(wrong(format!("-{letter}: no such option"))),
            }
        }
    }
    let Ok([image, mount]) = <[PathBuf; 2]>::try_from(paths) else {
        return Err(wrong("two paths are needed".to_owned()));
    };
    request.options =
        options::filter(&option_texts.join(","), request.sloppy).map_err(Refusal::Wrong)?;
    request.image = absolute(&image);
    request.mount = absolute(&mount);
    Ok(request)
}

/// The value of an option: the rest of its word, or the next word.
fn value_of(rest: &str, arguments: &mut impl Iterator<Item = OsString>) -> Option<String> {
    if !rest.is_empty() {
        return Some(rest.to_owned());
    }
    arguments.next()?.into_string().ok()
}

/// The daemon changes its directory; the tools find it by the paths of its command line.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Request, Refusal> {
        parse(words.iter().map(OsString::from))
    }

    fn refused(words: &[&str]) -> String {
        match parsed(words) {
            Err(Refusal::Wrong(why)) => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn as_mount_calls_it() {
        let request =
            parsed(&["/img/a", "/mnt", "-fnv", "-o", "rw,noauto,engine=sync", "-t", "swapfs"]);
        assert_eq!(
            request,
            Ok(Request {
                image: "/img/a".into(),
                mount: "/mnt".into(),
                options: "engine=sync".into(),
                fake: true,
                verbose: true,
                sloppy: false,
            })
        );
    }

    #[test]
    fn options_may_stand_anywhere_and_be_joined() {
        let request = parsed(&["-sothreads=2,colour=red", "/img/a", "-o", "checksum=off", "/mnt"]);
        let request = request.unwrap();
        assert_eq!(request.options, "threads=2,checksum=off");
        assert!(request.sloppy);
    }

    #[test]
    fn wrong_calls_say_what_is_wrong() {
        assert!(refused(&["/img/a"]).starts_with("two paths are needed: usage:"));
        assert!(refused(&["/a", "/b", "/c"]).starts_with("two paths"));
        assert!(refused(&["/a", "/b", "-o"]).starts_with("-o: no value"));
        assert!(refused(&["/a", "/b", "-x"]).starts_with("-x: no such option"));
        assert!(refused(&["/a", "/b", "-r"]).contains("'ro'"));
        assert!(refused(&["/a", "/b", "-N", "/proc/1/ns/mnt"]).contains("namespace"));
        assert_eq!(parsed(&["--help"]), Err(Refusal::Help));
    }
}
