//! `machinist wait`

use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Serialize;

use super::complete;
use super::context::Ctx;
use super::error::{CliError, Kind};
use super::list::addresses_text;
use super::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::machine::condition::Condition;
use crate::ops::OpError;
use crate::ops::wait::{Met, wait_for};

/// Wait until machines run, have booted, have stopped …
///
/// A machine that does not run is waited for, whoever starts it. One that runs and then stops ends the wait with status 1,
/// unless it is its end that is waited for. All machines are waited for at the same time, and until the last has come.
///
/// A port is tried inside the machine's network, at its loopback and its addresses: that works however the machine is
/// connected, and says nothing of firewalls on the way. The ports of a machine with the host's network are the host's. It needs
/// root, as a unit does.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist wait web                               Until it runs
  machinist wait web db --for booted --timeout 60  Until both have booted; status 124 after a minute
  machinist wait db --for address --json           Until it has an address, and which
  machinist wait db --for unit=multi-user.target   Until its own systemd says that a unit is active
  machinist wait web --for port=80                 Until something in it listens

Conditions:
  running    it runs, as `list` shows it
  booted     its own systemd has finished booting; another init has once it runs
  stopped    nothing of it runs
  frozen     it is frozen
  address    it has an address, and not only those of a link, which are there at once
  port=N     something in it accepts TCP connections at this port
  unit=NAME  this unit of its own systemd is active")]
pub(super) struct Args {
    /// Machines, or patterns of names
    #[arg(required = true, value_name = "NAME", add = complete::all())]
    names: Vec<String>,
    /// What is waited for: one of the conditions below
    #[arg(long = "for", value_name = "CONDITION", default_value = "running", add = complete::conditions())]
    condition: Condition,
    /// Wait no longer than this many seconds; for ever otherwise
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    timeout: Option<Duration>,
}

/// What came of one machine, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    machine: MachineName,
    r#for: String,
    /// "met", "timed-out" or "failed".
    result: &'static str,
    /// How long it took, in µs.
    after_us: u64,
    /// Its addresses, if they were waited for.
    addresses: Option<Vec<IpAddr>>,
    error: Option<CliError>,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::All).await?;
    let reports: Vec<Report> = join_all(names.iter().map(|name| wait_for_one(ctx, &args, name))).await;
    let statuses = reports.iter().filter_map(|report| report.error.as_ref());
    let statuses: Vec<u8> = statuses.map(|error| error.kind.exit_status()).collect();
    if ctx.voice.json {
        ctx.voice.json(&reports)?;
    }
    Ok(match statuses.as_slice() {
        [] => 0,
        // Where all have the same reason, that is the reason.
        [first, rest @ ..] if rest.iter().all(|status| status == first) => *first,
        _ => 1,
    })
}

async fn wait_for_one(ctx: &Ctx, args: &Args, name: &MachineName) -> Report {
    let begun = Instant::now();
    let wait = async { Ok(wait_for(ctx.bus().await?, name, &args.condition).await?) };
    let waited: Result<Met, CliError> = match args.timeout {
        None => wait.await,
        Some(limit) => {
            let waited = tokio::time::timeout(limit, wait).await;
            waited.unwrap_or_else(|_| Err(timed_out(name, &args.condition, limit).into()))
        }
    };
    let after = begun.elapsed();
    let mut report = Report {
        machine: name.clone(),
        r#for: args.condition.to_string(),
        result: "met",
        after_us: u64::try_from(after.as_micros()).unwrap_or(u64::MAX),
        addresses: None,
        error: None,
    };
    match waited {
        Ok(met) => {
            ctx.voice.status(&met_line(name, &args.condition, &met));
            report.addresses = met.addresses;
        }
        Err(error) => {
            error.show(ctx.voice);
            report.result = if error.kind == Kind::TimedOut {
                "timed-out"
            } else {
                "failed"
            };
            report.error = Some(error);
        }
    }
    report
}

fn met_line(name: &MachineName, condition: &Condition, met: &Met) -> String {
    match condition {
        Condition::Running => format!("{name} is running"),
        Condition::Booted => format!("{name} has booted"),
        Condition::Stopped => format!("{name} has stopped"),
        Condition::Frozen => format!("{name} is frozen"),
        Condition::Address => format!(
            "{name} has address {}",
            addresses_text(met.addresses.as_deref().unwrap_or_default())
        ),
        Condition::Port(port) => format!("{name} accepts connections at port {port}"),
        Condition::Unit(unit) => format!("{unit} of {name} is active"),
    }
}

fn timed_out(name: &MachineName, condition: &Condition, after: Duration) -> OpError {
    let state = match condition {
        Condition::Running => "does not run",
        Condition::Booted => "has not finished booting",
        Condition::Stopped => "has not stopped",
        Condition::Frozen => "is not frozen",
        Condition::Address => "has no address",
        Condition::Port(_) => "accepts no connections at the port",
        Condition::Unit(_) => "has not started the unit",
    };
    OpError::TimedOut {
        name: name.to_string(),
        state,
        after,
        hint: format!("see `machinist status {name}`, or wait longer with --timeout"),
    }
}
