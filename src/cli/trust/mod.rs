//! `machinist trust`: the verbs on keys that are pinned, one file each.

mod change;
mod list;

use super::context::Ctx;
use super::error::CliError;

/// Keys that have to sign what comes from an address
///
/// What `create` and `run` download from a pinned address, or from below it, has to be signed by one of its keys, without a word
/// on the command line; else nothing is made of it. Of several prefixes the longest counts; https or http makes no
/// difference. A pin is a file in /etc/machinist/keys.d: a line `URL: PREFIX`, and armoured keys below it. See
/// `machinist help downloads`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist trust add https://example.org/images publisher.asc
  machinist trust list
  machinist trust remove https://example.org/images --dry-run")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Pin keys to an address
    ///
    /// The fingerprints are shown: compare them with those that the publisher tells by another way. With the same keys nothing is
    /// done; others are refused unless --replace is given.
    #[command(after_help = "Examples:
  machinist trust add https://example.org/images publisher.asc --dry-run
  machinist trust add https://example.org/images publisher.asc
  machinist trust add https://example.org/images publisher.asc --replace
  cat publisher.asc | machinist trust add https://example.org/new -")]
    Add(change::AddArgs),
    List(list::Args),
    /// Take pinned keys back
    ///
    /// What comes from there need not be signed any more.
    #[command(after_help = "Examples:
  machinist trust remove https://example.org/images
  machinist trust remove 'https://*' --dry-run")]
    Remove(change::RemoveArgs),
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    match args.verb {
        Verb::Add(args) => change::add(ctx, args).await,
        Verb::List(args) => list::run(ctx, args).await,
        Verb::Remove(args) => change::remove(ctx, args).await,
    }
}
