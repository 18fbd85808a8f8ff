//! `machinist kill`

use clap::ValueEnum;

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::machine::signal::{Signal, SignalError};
use crate::ops::kill::{Signalled, kill};
use crate::ops::start::find_running;
use crate::output::data;

/// Send a signal to machines' processes
///
/// To all processes of the machine, as `machinectl kill` does, or only to its leader, which is its init. The signals that
/// an init heeds are its own: systemd powers off at RTMIN+4, see systemd(1).
///
/// All processes are those of the machine's unit: of a machine with a unit of its own, systemd-nspawn is one of them.
///
/// To power a machine off use `machinist stop`; to take it down at once, `machinist terminate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist kill web                                     SIGTERM to all its processes
  machinist kill --signal=HUP --whom leader web          Have its init read its configuration again
  machinist kill --signal=RTMIN+4 --whom leader 'web-*'  Ask the systemd of several to power off
  machinist kill -s list                                 What signals there are")]
pub(super) struct Args {
    /// Machines, or patterns of running machines' names
    #[arg(value_name = "NAME", add = complete::running())]
    names: Vec<String>,
    /// The signal: a name with or without SIG, RTMIN+N, or a number; `list` shows the names and sends none
    #[arg(short, long, value_name = "SIG", default_value = "TERM", allow_hyphen_values = true, value_parser = wanted, add = complete::signals())]
    signal: Wanted,
    /// Which of its processes
    #[arg(long, value_enum, default_value = "all", alias = "kill-whom")]
    whom: Whom,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// To see the names of signals.
    List,
    /// To send this one.
    Sent(Signal),
}

fn wanted(text: &str) -> Result<Wanted, SignalError> {
    match text {
        "list" => Ok(Wanted::List),
        signal => signal.parse().map(Wanted::Sent),
    }
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Whom {
    /// All processes of its unit
    All,
    /// Its leader, which is PID 1 inside
    Leader,
}

impl Whom {
    fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Leader => "leader",
        }
    }
}

/// Shows the names, one a line, in the order of their numbers.
fn list(ctx: &Ctx) -> Result<u8, CliError> {
    let names: Vec<&str> = Signal::names().collect();
    if ctx.voice.json {
        ctx.voice.json(&names)?;
    } else {
        data(&(names.join("\n") + "\n"))?;
    }
    Ok(0)
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let signal = match (args.signal, args.names.as_slice()) {
        (Wanted::List, []) => return list(ctx),
        (Wanted::List, [_, ..]) => {
            return Err(CliError::usage(
                "`list` shows the names of signals, and is for no machine",
            ));
        }
        (Wanted::Sent(_), []) => return Err(CliError::usage("no machine is named that the signal is for")),
        (Wanted::Sent(signal), [_, ..]) => signal,
    };
    let names = resolve(ctx, &args.names, Pool::Running).await?;
    let bus = ctx.bus().await?;
    let whom = args.whom.as_str();
    if args.dry_run {
        return plan_each(ctx, &names, async |name| {
            let registered = find_running(bus, &name).await?;
            Ok(vec![match args.whom {
                Whom::All => format!("send {signal} to all processes of unit {}", registered.unit),
                Whom::Leader => format!("send {signal} to process {}, the leader of '{name}'", registered.leader),
            }])
        })
        .await;
    }
    ctx.authorize().await;
    each(ctx, "kill", names, async |name| {
        let line = match kill(bus, &name, whom, signal).await? {
            Signalled::Now => format!("sent {signal} to {name}"),
            Signalled::WhenThawed => {
                format!("sent {signal} to {name}, which is frozen and hears of it when it is thawed")
            }
        };
        let outcome = Outcome::new("signalled", line);
        Ok(outcome.with("signal", signal.to_string()).with("whom", whom))
    })
    .await
}
