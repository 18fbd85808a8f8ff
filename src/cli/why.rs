//! `machinist why`

use std::fmt::Write as _;

use super::complete;
use super::context::Ctx;
use super::each::look_at_each;
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::machine::State;
use crate::machine::trouble::Severity;
use crate::ops::why::{Answer, explain};
use crate::output::data;
use crate::output::trouble::lines;

/// Find out why machines do not run, or cannot be reached
///
/// Joins what systemd, the journal of the last run, the settings, the image, the disk, the network and the machine's own systemd
/// say. The cause comes first, with the line of the journal or of the file that shows it, and with the command that mends it;
/// what else there is follows. Nothing is changed. What may not be read without root is left out.
///
/// Exit status: 0 if nothing is wrong, or the machine is only stopped; 1 if there is an error; 3 no such machine. With --json a
/// list: name, state, unit, addresses, and troubles, the cause first, of which each has code, severity ("error", "warning" or
/// "note"), machine, cause, evidence, hints.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist why web                                          The cause, and what mends it
  machinist why 'web*' db                                    Several
  machinist why web --json | jq -r '.[].troubles[].hints[]'  Just what mends it")]
pub(super) struct Args {
    /// Machines, or patterns of names
    #[arg(required = true, value_name = "NAME", add = complete::all())]
    names: Vec<String>,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::All).await?;
    let bus = ctx.bus().await?;
    let (answers, status) = look_at_each(ctx, &names, async |name| {
        Ok(explain(bus, &name, &ctx.places, &ctx.cancel).await?)
    })
    .await;
    if ctx.voice.json {
        ctx.voice.json(&answers)?;
    } else {
        data(&answers.iter().map(screen).collect::<Vec<_>>().join("\n"))?;
    }
    let is_wrong = |answer: &Answer| {
        answer
            .troubles
            .iter()
            .any(|trouble| trouble.severity == Severity::Error)
    };
    Ok(if status == 0 {
        u8::from(answers.iter().any(is_wrong))
    } else {
        status
    })
}

fn screen(answer: &Answer) -> String {
    let mut text = format!("{} ({})\n", answer.name, answer.state.as_str());
    for (at, trouble) in answer.troubles.iter().enumerate() {
        let lead = if at == 0 { "" } else { "also, " };
        let _ = write!(text, "\n{}", lines(lead, trouble));
    }
    if answer.troubles.is_empty() {
        let reachable = match answer.addresses.as_deref() {
            Some([first, ..]) if answer.state == State::Running => format!(" It can be reached at {first}."),
            _ => String::new(),
        };
        let _ = writeln!(text, "\nNothing is wrong.{reachable}");
    }
    text
}
