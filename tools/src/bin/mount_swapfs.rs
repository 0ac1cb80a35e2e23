//! `mount.swapfs` as a program of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    swapfs_tools::multicall::main("mount.swapfs")
}
