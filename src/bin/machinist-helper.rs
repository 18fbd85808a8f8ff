//! The `machinist-helper` command, which `machinist` calls and nobody else: see [`machinist::sys::helper`].

use std::process::ExitCode;

fn main() -> ExitCode {
    machinist::sys::helper::main()
}
