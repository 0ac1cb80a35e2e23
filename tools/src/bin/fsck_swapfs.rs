//! `fsck.swapfs` as a program of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    swapfs_tools::fsck::main(std::env::args_os())
}
