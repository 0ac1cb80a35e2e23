//! `swapfs`, and under their own names the daemon, the formatter, the checker and the mount
//! helper: one program with links to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    swapfs_tools::multicall::main("swapfs")
}
