//! The programs under test, in one binary that cargo builds for this package's tests: it is
//! run under the name of the program that it is to be (`arg0`), as `swapfs` itself is.

use std::process::ExitCode;

fn main() -> ExitCode {
    swapfs_tools::multicall::main("swapfs")
}
