//! `machinist clean`

use std::time::Duration;

use serde_json::json;

use super::context::Ctx;
use super::error::CliError;
use super::sweep::finisher;
use crate::machine::text::bytes;
use crate::ops::clean::{CleanOptions, Cleaned, clean, plan};
use crate::output::data;

/// How long cached bootstraps and downloads are kept without --all.
const CACHE_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Remove leftovers, old cached bootstraps and downloads, old trash and old logs
///
/// Sweeps what interrupted calls left behind, bootstraps and downloads that were cached and logs that were written over 30 days ago,
/// and trash that is older than machinist.conf's TrashAgeDays=. Says what it freed. Machines are never touched.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist clean --dry-run   See what would be removed
  machinist clean             Remove it
  machinist clean --all       Also recent caches and all trash")]
pub(super) struct Args {
    /// Also what is not old: all cached bootstraps and downloads, and all trash
    #[arg(short, long)]
    all: bool,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    ctx.need_root("clean")?;
    let age = |age: Duration| if args.all { Duration::ZERO } else { age };
    let options = CleanOptions {
        cache_age: Some(age(CACHE_AGE)),
        trash_age: age(ctx.config()?.trash_age),
    };
    let (places, cancel) = (ctx.places.clone(), ctx.cancel.clone());
    if args.dry_run {
        let found = ctx.blocking(move || plan(&places, options, &cancel)).await?;
        return show(ctx, &found, "would free");
    }
    let progress = ctx.progress("clean");
    let finish = finisher(ctx).await;
    let cleaned = ctx
        .blocking(move || clean(&places, options, &finish, &progress, &cancel))
        .await?;
    show(ctx, &cleaned, "freed")
}

fn show(ctx: &Ctx, items: &[Cleaned], did: &str) -> Result<u8, CliError> {
    let total: u64 = items.iter().map(|item| item.bytes).sum();
    if ctx.voice.json {
        ctx.voice.json(&json!({ "items": items, "bytes": total }))?;
        return Ok(0);
    }
    for item in items {
        let path = item
            .path
            .as_ref()
            .map(|path| format!(" {}", path.display()))
            .unwrap_or_default();
        data(&format!(
            "{:>8}  {}{path}\n",
            bytes(item.bytes),
            crate::machine::text::printable(&item.what)
        ))?;
    }
    ctx.voice.status(&format!("{did} {}", bytes(total)));
    Ok(0)
}
