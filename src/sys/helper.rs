//! The program `machinist-helper`: what can only be done by a process of one thread, which is nothing else.
//!
//! It is a program of its own because one of its jobs runs from a copy in memory, made for each call: it is small,
//! as `machinist` is not.

use std::env;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use super::{console, enter, overlay, staging};
use crate::unit::console::JOB as CONSOLE;
use crate::unit::layers::SHIFT_JOB;

/// Its file, in the directory of this program, or in `../libexec` from there.
const PROGRAM: &str = "machinist-helper";

/// Does the job that argument 0 names; to be called before anything else.
#[must_use]
pub fn main() -> ExitCode {
    let mut words = env::args_os();
    match words.next() {
        Some(job) if job == enter::JOB => enter::helper_main(),
        Some(job) if job == overlay::JOB => overlay::helper_main(words),
        Some(job) if job == SHIFT_JOB => overlay::shift_main(words),
        Some(job) if job == CONSOLE => console::keep(words),
        Some(job) if job == staging::HOLD => staging::hold(words),
        Some(job) if job == staging::VANISH => staging::vanish(words),
        _ => {
            let _ = writeln!(
                io::stderr(),
                "{PROGRAM} is a part of machinist, and called by nobody else"
            );
            ExitCode::FAILURE
        }
    }
}

/// Where it is.
pub(super) fn program() -> io::Result<PathBuf> {
    let ours = env::current_exe()?;
    let directory = ours.parent().unwrap_or(&ours);
    let places = [directory.join(PROGRAM), directory.join("../libexec").join(PROGRAM)];
    let found = places.iter().find_map(|place| place.canonicalize().ok());
    found.ok_or_else(|| {
        let missing = format!(
            "there is no {PROGRAM} beside {}: install machinist again",
            ours.display()
        );
        io::Error::new(io::ErrorKind::NotFound, missing)
    })
}
