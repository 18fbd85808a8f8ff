//! `machinist limit`: what a machine may use.

mod raw;
mod set;
mod show;

use super::complete;
use super::context::Ctx;
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::limit::{find, parse_all};
use crate::machine::MachineName;
use crate::ops::start::find_machine;
use crate::output::table::TableArgs;
use crate::sys::bus::{Bus, BusError};
use crate::unit::key::slice;

/// Limit what machines may use, or show their limits
///
/// A limit of memory, CPU, tasks or disks is set on the machine's unit through systemd: it holds at once where the machine
/// runs, and for good. Resource limits of processes stand in the machine's settings and hold from its next start. Either
/// all limits of a call are set, or none.
///
/// `none` is no limit; an empty value takes the limit away, and what else systemd's files say holds again. Without any
/// KEY=VALUE the limits are shown, with what is used of them and the file that sets them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist limit web memory=512M cpus=1.5 tasks=500     At once, and for good
  machinist limit web                                    What it may use, and uses
  machinist limit web memory=none                        No limit of memory
  machinist limit web cpus=                              As if it had never been limited
  machinist limit 'web-*' memory=25% --runtime           Until the next boot of the host
  machinist limit web nofile=65536 oom-score=200         From its next start
  machinist limit --slice web memory=2G                  What all machines of a slice share
  machinist limit web --json                             For scripts

Limits of the unit:
  memory, memory-high, memory-low, memory-min, swap, zswap
                              bytes (512M, 2G), or a percentage of the host's memory
  cpus                        number of CPUs (1.5), or percentage of one (150%)
  cpu-weight, io-weight       1 to 10000, 100 is the default; cpu-weight also idle
  cpuset, memory-nodes        CPUs and NUMA nodes (0-3,7)
  tasks                       number of processes and threads, or a percentage
  io-read, io-write           DEVICE:BYTES a second (/dev/sda:10M)
  io-read-iops, io-write-iops DEVICE:NUMBER a second
  io-latency                  DEVICE:TIME (/dev/sda:25ms)
  nice, oom-score             -20 to 19, and -1000 to 1000; from its next start
Limits of the settings, SOFT or SOFT:HARD, from its next start:
  nofile, nproc, cpu-time, fsize, data, stack, core, rss, as, memlock, locks, sigpending,
  msgqueue, rtprio, rttime
The names of systemd.resource-control(5) and systemd.nspawn(5) are taken as they are, such as
MemoryMax=, CPUQuota= and LimitNOFILE=.

Columns: machine, key, device, limit, use, peak, from; and directive, unit. In JSON bytes and
microseconds are integers, and null is no limit; that of cpus is microseconds a second.")]
pub(super) struct Args {
    /// Machines, or patterns of names, and limits to set
    #[arg(value_name = "NAME|KEY=VALUE", add = complete::all())]
    words: Vec<String>,
    /// Limit what the machines in machine-SLICE.slice share
    #[arg(long, value_name = "SLICE")]
    slice: Option<String>,
    /// Only until the next boot of the host
    #[arg(long)]
    runtime: bool,
    /// Read or write a file of the machine's control group, as lxc-cgroup does
    #[arg(long, value_name = "FILE[=VALUE]", conflicts_with_all = ["slice", "runtime"])]
    raw: Vec<String>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    table: TableArgs,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let (limits, names): (Vec<String>, Vec<String>) = args.words.into_iter().partition(|word| word.contains('='));
    let limits = parse_all(&limits)?;
    if let Some(word) = names.iter().skip(1).find(|word| find(word).is_some()) {
        return Err(CliError::usage(format!("limit '{word}' has no value")).hint(format!("write `{word}=VALUE`")));
    }
    if let Some(slice) = &args.slice {
        if !names.is_empty() {
            return Err(CliError::usage("a slice and machines are limited one by one"));
        }
        let slice = slice_of(slice)?;
        return if limits.is_empty() {
            show::slice(ctx, &slice, &args.table).await
        } else {
            set::slice(ctx, slice, limits, args.runtime, args.dry_run).await
        };
    }
    if names.is_empty() {
        return Err(CliError::usage("no machine is named").hint("such as `machinist limit web memory=512M`"));
    }
    let names = resolve(ctx, &names, Pool::All).await?;
    if !args.raw.is_empty() {
        if !limits.is_empty() {
            return Err(CliError::usage("--raw and other limits are set one by one"));
        }
        return raw::run(ctx, names, &args.raw, args.dry_run).await;
    }
    if limits.is_empty() {
        show::machines(ctx, &names, &args.table).await
    } else {
        set::machines(ctx, names, limits, args.runtime, args.dry_run).await
    }
}

/// The unit that a machine runs in, or would run in.
async fn unit_of(bus: &Bus, name: &MachineName) -> Result<String, CliError> {
    match bus.registered(name.as_str()).await {
        Ok(registered) => Ok(registered.unit),
        Err(BusError::NoSuchMachine(_)) => {
            find_machine(bus, name).await?;
            Ok(name.unit())
        }
        Err(error) => Err(error.into()),
    }
}

/// The unit of a slice.
fn slice_of(name: &str) -> Result<String, CliError> {
    slice(name).ok_or_else(|| {
        let name = crate::machine::text::printable(name);
        CliError::usage(format!("'{name}' is no name of a slice of machines"))
            .hint("letters, digits, '_', '.' and ':', and single dashes between them; 'web' is machine-web.slice")
    })
}

#[cfg(test)]
mod tests {

    #[test]
    fn every_short_name_is_in_the_help() {
        use clap::CommandFactory as _;
        let help = crate::cli::Cli::command()
            .find_subcommand("limit")
            .and_then(|verb| verb.get_after_help().map(ToString::to_string))
            .unwrap();
        for key in crate::limit::KEYS.iter().filter(|key| !key.name.is_empty()) {
            let words = help.split(|c: char| c.is_whitespace() || ",;".contains(c));
            assert!(words.into_iter().any(|word| word == key.name), "{}", key.name);
        }
    }
}
