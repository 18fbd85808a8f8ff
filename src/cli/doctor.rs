//! `machinist doctor`

use std::fmt::Write as _;

use super::context::Ctx;
use super::error::CliError;
use crate::machine::text::printable;
use crate::machine::trouble::Severity;
use crate::ops::doctor::{Checkup, examine};
use crate::output::data;
use crate::output::trouble::{counted, lines};

/// Find out what on this host keeps machines from working
///
/// Looks at systemd and the services that machines need, at the kernel, the network, where images lie, and the settings of all
/// machines; changes nothing. Each thing that is wrong is shown with where that is to be seen, and what mends it. What may not
/// be read without root is left out.
///
/// Exit status: 0 if machines work, be it with warnings; 1 if there is an error. With --json: systemd, kernel, filesystem, storage,
/// running, and troubles, of which each has code, severity ("error", "warning" or "note"), machine, cause, evidence, hints.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist doctor                                          All that is wrong
  machinist doctor --json | jq -r '.troubles[].hints[]'     Just what mends it")]
pub(super) struct Args {}

pub(super) async fn run(ctx: &Ctx, _: Args) -> Result<u8, CliError> {
    let checkup = examine(ctx.bus().await?, &ctx.places, &ctx.cancel).await?;
    let worst = checkup.troubles.first().map(|trouble| trouble.severity);
    if ctx.voice.json {
        ctx.voice.json(&checkup)?;
    } else {
        data(&screen(&checkup))?;
    }
    Ok(u8::from(worst == Some(Severity::Error)))
}

fn screen(checkup: &Checkup) -> String {
    let mut text = format!("systemd {}, kernel {}", checkup.systemd, printable(&checkup.kernel));
    if let Some(filesystem) = &checkup.filesystem {
        let _ = write!(text, "; images on {}", printable(filesystem));
    }
    if let Some(storage) = checkup.storage {
        let _ = write!(text, ", copied by {storage}");
    }
    let _ = writeln!(text, "; {} running", checkup.running);
    for trouble in &checkup.troubles {
        text.push('\n');
        text.push_str(&lines("", trouble));
    }
    let _ = writeln!(text, "\n{}", counted(&checkup.troubles));
    text
}
