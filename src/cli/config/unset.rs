//! `machinist config unset`

use super::change::{self, How};
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::nspawn::assignment::{AssignmentError, parse_key};
use crate::nspawn::edit::Edit;
use crate::ops::config::Wanted;

/// Take settings of machines back to systemd's default
///
/// With a value, only that one is taken out of a list. Keys that systemd does not know are removed, too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config unset web Exec.Hostname
  machinist config unset web Network.Port=tcp:8080:80   One of several")]
pub(in crate::cli) struct Args {
    /// Machine, or a pattern of image names
    #[arg(value_name = "NAME", add = complete::images())]
    name: String,
    /// Settings, see systemd.nspawn(5)
    #[arg(required = true, value_name = "SECTION.KEY[=VALUE]", value_parser = removal)]
    settings: Vec<Removal>,
    #[command(flatten)]
    how: How,
}

/// What is to go, and how it was typed.
#[derive(Clone, Debug)]
struct Removal {
    edit: Edit,
    typed: String,
}

fn removal(text: &str) -> Result<Removal, String> {
    let (path, value) = text
        .split_once('=')
        .map_or((text, None), |(path, value)| (path, Some(value)));
    let path = path.trim();
    let known = parse_key(path);
    // A slip of the pen stands in files, too.
    let (Some((section, key)), Ok(_) | Err(AssignmentError::Unknown { .. })) = (path.split_once('.'), &known) else {
        return Err(known.err().map(|error| error.to_string()).unwrap_or_default());
    };
    let (section, key) = (section.to_owned(), key.to_owned());
    let edit = match value {
        Some(value) => {
            let value = Some(value.to_owned());
            Edit::Remove { section, key, value }
        }
        None => Edit::Reset { section, key },
    };
    let typed = text.to_owned();
    Ok(Removal { edit, typed })
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let typed: Vec<&str> = args.settings.iter().map(|removal| removal.typed.as_str()).collect();
    let what = format!("unset {}", typed.join(" "));
    let edits = args.settings.into_iter().map(|removal| removal.edit).collect();
    change::run(ctx, "config unset", &[args.name], what, Wanted::Edits(edits), args.how).await
}
