//! `machinist trust add` and `machinist trust remove`

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::machine::text::printable;
use crate::ops::OpError;
use crate::ops::trust::{Change, Pinned, Request, add as pin, matching, plan, remove as unpin};
use crate::sources::trust::{Key, Keyring};
use crate::sources::{SourceError, Url};

/// The most that is read of standard input, in bytes.
const STDIN_MAX: u64 = 4 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// The address, as the beginning of those that it is for: https://HOST[/DIRECTORY]
    #[arg(value_name = "URL-PREFIX", value_parser = prefix)]
    prefix: Url,
    /// File with its publisher's public keys, armoured or not; `-` for standard input
    #[arg(value_name = "KEY")]
    key: PathBuf,
    /// Also if other keys are pinned there
    #[arg(long)]
    replace: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RemoveArgs {
    /// Addresses that keys are pinned to, or patterns of them
    #[arg(required = true, value_name = "URL-PREFIX", add = complete::pins())]
    prefixes: Vec<String>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// An address without what is asked of a file, or whose it is.
fn prefix(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(str::to_owned)?;
    if text.contains(['?', '#', '@']) {
        return Err("it is an address without a user, a question or a mark".to_owned());
    }
    Ok(url)
}

pub(super) async fn add(ctx: &Ctx, args: AddArgs) -> Result<u8, CliError> {
    if !args.dry_run {
        ctx.need_root("trust add")?;
    }
    let path = args.key;
    let keyring = ctx.wait_for_user(move || read(&path)).await?;
    let request = Request {
        prefix: args.prefix,
        keyring,
        replace: args.replace,
    };
    let (places, prefix) = (ctx.places.clone(), request.prefix.to_string());
    if args.dry_run {
        let pinned = ctx.blocking(move || plan(&request, &places)).await?;
        let what = said(&pinned, &prefix, false);
        return ctx.show_plan(&[what]).map(|()| 0);
    }
    let (progress, cancel) = (ctx.progress("trust"), ctx.cancel.clone());
    let pinned = ctx.blocking(move || pin(&request, &places, &progress, &cancel)).await?;
    ctx.voice.status(&said(&pinned, &prefix, true));
    if ctx.voice.json {
        let (keys, path) = (&pinned.keys, &pinned.path);
        ctx.voice
            .json(&[json!({ "prefix": prefix, "result": pinned.change, "keys": keys, "file": path })])?;
    }
    Ok(0)
}

/// What was done, or would be; with the fingerprints, which have to be compared.
fn said(pinned: &Pinned, prefix: &str, done: bool) -> String {
    let keys: Vec<String> = pinned.keys.iter().map(shown).collect();
    let keys = keys.join(", ");
    let what = match (pinned.change, done) {
        (Change::Added, true) => "pinned for",
        (Change::Added, false) => "pin for",
        (Change::Unchanged, _) => "pinned already for",
        (Change::Refreshed, true) => "refreshed for",
        (Change::Refreshed, false) => "refresh for",
        (Change::Replaced, true) => "replaced for",
        (Change::Replaced, false) => "replace for",
    };
    format!("{what} '{prefix}': {keys}")
}

fn shown(key: &Key) -> String {
    match key.users.first() {
        Some(user) => format!("{} ({})", key.fingerprint, printable(user)),
        None => key.fingerprint.clone(),
    }
}

fn read(path: &Path) -> Result<Keyring, CliError> {
    let keyring = if path == Path::new("-") {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            return Err(
                CliError::usage("the key is read from standard input, which is a terminal")
                    .hint("give it by a pipe, or name its file"),
            );
        }
        let mut bytes = Vec::new();
        stdin
            .lock()
            .take(STDIN_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| SourceError::io("read", Path::new("standard input"), error))
            .map_err(OpError::from)?;
        Keyring::parse(&bytes, Path::new("standard input"))
    } else {
        Keyring::read(path)
    };
    Ok(keyring.map_err(SourceError::from).map_err(OpError::from)?)
}

pub(super) async fn remove(ctx: &Ctx, args: RemoveArgs) -> Result<u8, CliError> {
    if !args.dry_run {
        ctx.need_root("trust remove")?;
    }
    let (mut rows, mut steps, mut status) = (Vec::new(), Vec::new(), 0);
    for pattern in args.prefixes {
        let (places, progress, cancel) = (ctx.places.clone(), ctx.progress("trust"), ctx.cancel.clone());
        let dry_run = args.dry_run;
        let found = ctx.blocking(move || {
            if dry_run {
                matching(&pattern, &places)
            } else {
                unpin(&pattern, &places, &progress, &cancel)
            }
        });
        match found.await {
            Ok(found) => {
                for pin in found {
                    steps.push(format!("remove '{}', the pin of '{}'", pin.path.display(), pin.prefix));
                    if !args.dry_run {
                        ctx.voice
                            .status(&format!("nothing is pinned for '{}' any more", pin.prefix));
                    }
                    rows.push(json!({ "prefix": pin.prefix.to_string(), "result": "removed", "file": pin.path }));
                }
            }
            Err(error) => {
                status = 1;
                error.show(ctx.voice);
            }
        }
    }
    if args.dry_run {
        ctx.show_plan(&steps)?;
    } else if ctx.voice.json {
        ctx.voice.json(&rows)?;
    }
    Ok(status)
}
