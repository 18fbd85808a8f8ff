//! `machinist man`

use std::fs;
use std::path::PathBuf;

use clap::CommandFactory as _;

use super::context::Ctx;
use super::error::{CliError, Kind};
use super::{Cli, complete, help};
use crate::help::{TOPICS, topic};
use crate::output::data;

/// Write the manual pages
///
/// The pages come from the same source as --help and `machinist help TOPIC`. Without --output the page of machinist, of one
/// verb, or of one topic is printed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist man | man -l -             Read the page of machinist
  machinist man create | man -l -      Read the page of one verb
  machinist man --output man           Write all pages, into man/man1 and man/man7")]
pub(super) struct Args {
    /// The verb or topic whose page is printed
    #[arg(conflicts_with = "output", value_name = "TOPIC", add = complete::help())]
    topic: Vec<String>,
    /// Write all pages into the directories of their sections below this one
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(super) fn run(_: &Ctx, args: &Args) -> Result<u8, CliError> {
    let failed = |error: std::io::Error| CliError::new(Kind::Failed, format!("cannot write manual pages: {error}"));
    let command = Cli::command();
    if let Some(directory) = &args.output {
        let [verbs, topics] = ["man1", "man7"].map(|section| directory.join(section));
        fs::create_dir_all(&verbs).map_err(failed)?;
        clap_mangen::generate_to(command, verbs).map_err(failed)?;
        fs::create_dir_all(&topics).map_err(failed)?;
        for topic in TOPICS {
            fs::write(topics.join(format!("{}.7", topic.page_name())), topic.roff()).map_err(failed)?;
        }
        return Ok(0);
    }
    if let [name] = args.topic.as_slice()
        && let Some(topic) = topic(name)
    {
        data(&topic.roff())?;
        return Ok(0);
    }
    let page = help::find_verb(&args.topic)?;
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).map_err(failed)?;
    data(&String::from_utf8_lossy(&text))?;
    Ok(0)
}
