//! `machinist man`

use std::path::PathBuf;

use clap::CommandFactory as _;

use super::Cli;
use super::context::Ctx;
use super::error::{CliError, Kind};
use crate::output::data;

/// Write the manual pages
///
/// The pages come from the same source as --help. Without --output the page of machinist, or of one verb, is printed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist man | man -l -             Read the page of machinist
  machinist man create | man -l -      Read the page of one verb
  machinist man --output man/man1      Write all pages, as `make install` does")]
pub(super) struct Args {
    /// The verb whose page is printed
    #[arg(conflicts_with = "output")]
    verb: Vec<String>,
    /// Write all pages into this directory
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(super) fn run(_: &Ctx, args: &Args) -> Result<u8, CliError> {
    let failed = |error: std::io::Error| CliError::new(Kind::Failed, format!("cannot write manual pages: {error}"));
    // Hidden from the pages: clap's own `help`, which has nothing to say.
    let command = Cli::command().disable_help_subcommand(true);
    if let Some(directory) = &args.output {
        std::fs::create_dir_all(directory).map_err(failed)?;
        clap_mangen::generate_to(command, directory).map_err(failed)?;
        return Ok(0);
    }
    let mut page = command;
    for word in &args.verb {
        let name = format!("{}-{word}", page.get_name());
        let below = page.find_subcommand(word).cloned();
        let unknown = || CliError::usage(format!("no verb '{}'", crate::machine::text::printable(word)));
        page = below.ok_or_else(unknown)?.name(name);
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).map_err(failed)?;
    data(&String::from_utf8_lossy(&text))?;
    Ok(0)
}
