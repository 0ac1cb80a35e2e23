//! `mkswapfs`: see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    mkswapfs::main(std::env::args_os())
}
