//! `swapfsd`: see [`swapfsd::daemon`].

use std::process::ExitCode;

fn main() -> ExitCode {
    swapfsd::daemon::main(std::env::args_os())
}
