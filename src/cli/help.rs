//! `machinist help`

use clap::{Command, CommandFactory as _, Parser as _};

use super::Cli;
use super::complete;
use super::context::Ctx;
use super::error::{CliError, Kind};
use crate::help::{TOPICS, topic};
use crate::machine::text::printable;
use crate::output::page;

/// How alike two words must be for one to be taken for a typo of the other; as clap has it for verbs.
const ALIKE: f64 = 0.7;
/// The most names that are offered for a typo.
const OFFERED: usize = 3;

/// Show the help of a verb, or the page about a topic
///
/// Without either all verbs and topics are listed. `man machinist-TOPIC` shows the same page.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist help               All verbs and topics
  machinist help exec          All about one verb
  machinist help security      What `exec` guarantees, and what it does not")]
pub(super) struct Args {
    /// A verb or a topic
    #[arg(value_name = "TOPIC", add = complete::help())]
    topic: Vec<String>,
}

pub(super) fn run(_: &Ctx, args: &Args) -> Result<u8, CliError> {
    if let [name] = args.topic.as_slice()
        && let Some(topic) = topic(name)
    {
        page(&topic.text())?;
        return Ok(0);
    }
    find_verb(&args.topic)?;
    let verb = args.topic.iter().map(String::as_str);
    // clap knows how the help of a verb is shown.
    if let Err(shown) = Cli::try_parse_from(["machinist"].into_iter().chain(verb).chain(["--help"])) {
        shown.print()?;
    }
    Ok(0)
}

/// The verb of these words, `config check`, under the name of its page; the whole command for none.
pub(super) fn find_verb(words: &[String]) -> Result<Command, CliError> {
    words.iter().try_fold(Cli::command(), |command, word| {
        let name = format!("{}-{word}", command.get_name());
        let below = command.find_subcommand(word).cloned();
        Ok(below.ok_or_else(|| unknown(word))?.name(name))
    })
}

/// There is no help of that name; which names are like it.
pub(super) fn unknown(name: &str) -> CliError {
    let verbs: Vec<String> = complete::verbs().map(|(verb, _)| verb).collect();
    let names = verbs
        .iter()
        .map(String::as_str)
        .chain(TOPICS.iter().map(|topic| topic.name));
    let mut near: Vec<(f64, &str)> = names
        .map(|known| (strsim::jaro(known, name), known))
        .filter(|(alike, _)| *alike > ALIKE)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<&str> = near.into_iter().take(OFFERED).map(|(_, known)| known).collect();
    let error = CliError::new(Kind::Usage, format!("no verb or topic '{}'", printable(name)));
    let error = match near.as_slice() {
        [] => error,
        near => error.hint(format!("similar names: {}", near.join(", "))),
    };
    error.hint("`machinist help` lists all")
}

/// The list of topics, and what comes after it in the help of machinist.
pub(super) fn with_topics(rest: &str) -> String {
    let topics = TOPICS
        .iter()
        .map(|topic| format!("  {:<11}  {}\n", topic.name, topic.about()));
    format!("Topics:\n{}\n{rest}", topics.collect::<String>())
}
