//! `machinist config unset`

use super::allow;
use super::change::{self, How};
use super::setting::{Edits, Name};
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::nspawn::assignment::{AssignmentError, parse_key};
use crate::nspawn::edit::Edit;
use crate::unit::topic::Topic;

/// Take settings of machines back to systemd's default
///
/// With a value, only that one is taken out of a list. Keys that systemd does not know are removed, too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config unset web Exec.Hostname
  machinist config unset web Network.Port=tcp:8080:80   One of several
  machinist config unset web restart slice
  machinist config unset web --allow docker")]
pub(in crate::cli) struct Args {
    /// Machine, or a pattern of image names
    #[arg(value_name = "NAME", add = complete::images())]
    name: String,
    /// Settings, see systemd.nspawn(5)
    #[arg(required_unless_present = "allow", value_name = "SECTION.KEY[=VALUE]", value_parser = removal)]
    settings: Vec<Removal>,
    /// Take back what `config set --allow` writes, whoever has written it
    #[arg(long, value_name = "BUNDLE", value_parser = allow::names())]
    allow: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// What is to go, and how it was typed.
#[derive(Clone, Debug)]
struct Removal {
    edits: Vec<Edit>,
    /// The drop-in that it stands in; the .nspawn file otherwise.
    topic: Option<Topic>,
    typed: String,
}

fn removal(text: &str) -> Result<Removal, String> {
    let (path, value) = text
        .split_once('=')
        .map_or((text, None), |(path, value)| (path, Some(value)));
    let path = path.trim();
    let typed = text.to_owned();
    let path = match Name::parse(path) {
        Ok(Name::Unit(key)) => {
            let value = value.map(|value| key.encode(value)).transpose();
            let edits = key.remove(value.map_err(|error| error.to_string())?);
            let topic = Some(key.topic);
            return Ok(Removal { edits, topic, typed });
        }
        Ok(Name::Nspawn(key)) => key.path(),
        Err(message) if !path.contains('.') => return Err(message),
        Err(_) => path.to_owned(),
    };
    let known = parse_key(&path);
    // A slip of the pen stands in files, too.
    let (Some((section, key)), Ok(_) | Err(AssignmentError::Unknown { .. })) = (path.split_once('.'), &known) else {
        return Err(known.err().map(|error| error.to_string()).unwrap_or_default());
    };
    let (section, key) = (section.to_owned(), key.to_owned());
    let edits = vec![match value {
        Some(value) => {
            let value = Some(value.to_owned());
            Edit::Remove { section, key, value }
        }
        None => Edit::Reset { section, key },
    }];
    let topic = None;
    Ok(Removal { edits, topic, typed })
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let typed: Vec<&str> = args.settings.iter().map(|removal| removal.typed.as_str()).collect();
    let what = allow::typed("unset", &typed.join(" "), &args.allow);
    let mut edits = Edits::default();
    for removal in args.settings {
        match removal.topic {
            Some(topic) => edits.unit(topic, removal.edits),
            None => edits.settings.extend(removal.edits),
        }
    }
    allow::forbid(&args.allow, &mut edits);
    change::run(ctx, "config unset", &[args.name], what, edits.into(), args.how).await
}
