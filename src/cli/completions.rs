//! `machinist completions`

use std::ffi::OsString;

use clap::ValueEnum;
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use super::context::Ctx;
use super::error::{CliError, Kind};
use crate::output::data;

/// Print the completion script of a shell
///
/// The script asks machinist itself, so that machine and image names are those of the moment. The package installs it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  source <(machinist completions bash)                               For this shell
  machinist completions fish > ~/.config/fish/completions/machinist.fish")]
pub(super) struct Args {
    /// Which shell
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(_: &Ctx, args: &Args) -> Result<u8, CliError> {
    let shell: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    // The name in $PATH, not the path we were started by: the script outlives a build directory.
    let program = OsString::from("machinist");
    let program = program.to_string_lossy();
    shell
        .write_registration("COMPLETE", "machinist", &program, &program, &mut script)
        .map_err(|error| CliError::new(Kind::Failed, format!("cannot write the script: {error}")))?;
    data(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
