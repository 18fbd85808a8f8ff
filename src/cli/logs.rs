//! `machinist logs`

use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::complete;
use super::context::{Ctx, internal_error, is_root};
use super::each::look_at_each;
use super::error::{CliError, Kind};
use super::names::{Pool, resolve};
use crate::machine::text::printable;
use crate::machine::{Cancel, MachineName};
use crate::ops::start::find_machine;
use crate::output::Voice;
use crate::output::entry::{Printer, Shown, Style};
use crate::sys::bus::{Bus, BusError};
use crate::sys::guest::Leader;
use crate::sys::logs::{self, Guest, Merge, Query, Sources, Told, Unit};

mod follow;

/// Show what machines and their supervisors say
///
/// Merges by time what systemd and systemd-nspawn say about a machine's unit, what the machine shows on its console, both in
/// the host's journal, and the machine's own journal, whether it runs or not. Without options that is all there is, oldest
/// first, as with journalctl; with --follow the last 10 entries, or all since --since or --boot, and then what comes.
///
/// --follow goes on while a machine is down, and when it starts again; Ctrl-C ends it. A machine's own journal is read
/// without privilege, and only for root; of a machine that is down, if it has a machine ID. What the machine wrote is shown with nothing in it that could steer a terminal.
///
/// With --output=json, or --json, each line is an object as `journalctl -o json` has it, with the fields MACHINIST_MACHINE and
/// MACHINIST_SOURCE ("supervisor", "console" or "guest"). Values over 1 MiB, or 64 KiB in text, are cut. On systemd 252
/// what systemd-nspawn itself says counts as console.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist logs web                               All of it
  machinist logs web -n 50                         The last 50 entries
  machinist logs web --since '10 minutes ago'      What was said lately, times as in systemd.time(7)
  machinist logs web --boot --from guest           Its own journal since its last start
  machinist logs 'w*' --from console -o cat        What machines show on their consoles
  machinist logs web -n 3 -o json                  For scripts")]
pub(super) struct Args {
    /// Machines, or patterns of names
    #[arg(required = true, value_name = "NAME", add = complete::all())]
    names: Vec<String>,
    /// Go on with what comes
    #[arg(short, long, conflicts_with = "until")]
    follow: bool,
    /// Only the last N entries, or "all"
    #[arg(short = 'n', long, value_name = "N", value_parser = lines)]
    lines: Option<Lines>,
    /// Nothing before this time, such as "yesterday", "-2h" or "2026-11-23 10:00"
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Nothing after this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<String>,
    /// Only since the last start; -1 is the one before, 1 the first that is known, an ID that of an invocation or of a boot
    #[arg(
        long,
        value_name = "N|ID",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "0",
        allow_hyphen_values = true
    )]
    boot: Option<String>,
    /// How entries are shown
    #[arg(short, long, value_name = "STYLE", value_enum)]
    output: Option<Style>,
    /// Only what comes from there; may be given more than once
    #[arg(long, value_name = "SOURCE", value_enum)]
    from: Vec<From>,
}

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum From {
    /// systemd and systemd-nspawn, about the machine
    Supervisor,
    /// The machine, on its console
    Console,
    /// The machine's own journal
    Guest,
}

impl From {
    fn of(from: logs::From) -> &'static str {
        match from {
            logs::From::Supervisor => "supervisor",
            logs::From::Console => "console",
            logs::From::Guest => "guest",
        }
    }
}

/// How many entries: all if `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lines(pub(super) Option<usize>);

pub(super) fn lines(text: &str) -> Result<Lines, String> {
    if text == "all" {
        return Ok(Lines(None));
    }
    let number = text
        .parse()
        .map_err(|_| "a number is expected, or \"all\"".to_owned())?;
    Ok(Lines(Some(number)))
}

/// How many entries --follow begins with.
const FOLLOWED: usize = 10;
/// The fields that people see.
pub(super) const SHOWN: [&str; 6] = [
    "MESSAGE",
    "SYSLOG_IDENTIFIER",
    "_COMM",
    "_PID",
    "SYSLOG_PID",
    "_HOSTNAME",
];

/// What is asked, of each machine alike.
#[derive(Clone, Copy, Debug)]
struct Wish {
    supervisor: bool,
    console: bool,
    guest: bool,
}

impl Wish {
    fn of(from: &[From]) -> Self {
        let has = |wanted| from.is_empty() || from.contains(&wanted);
        Self {
            supervisor: has(From::Supervisor),
            console: has(From::Console),
            guest: has(From::Guest),
        }
    }

    fn unit(self, name: String) -> Option<Unit> {
        (self.supervisor || self.console).then_some(Unit {
            name,
            supervisor: self.supervisor,
            console: self.console,
        })
    }
}

/// A machine, and where its entries are.
#[derive(Debug)]
struct Target {
    name: MachineName,
    unit: String,
    /// PID of its leader, while it runs.
    leader: Option<u32>,
    guest: Result<Place, &'static str>,
}

/// Where a guest's journal is.
#[derive(Clone, Debug)]
enum Place {
    Leader(Arc<Leader>),
    Image(PathBuf),
}

impl Place {
    fn guest(self) -> Guest {
        match self {
            Self::Leader(leader) => Guest::Running(leader),
            Self::Image(path) => Guest::Image(path),
        }
    }
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::All).await?;
    let wish = Wish::of(&args.from);
    if wish.guest && !wish.supervisor && !wish.console && !is_root() {
        return Err(needs_root());
    }
    let query = query(&args, ctx.voice, &ctx.cancel).await?;
    let bus = ctx.bus().await?;
    let (targets, mut status) = look_at_each(ctx, &names, async |name| {
        let target = look_up(bus, &name).await?;
        let query = match &args.boot {
            Some(boot) => of_boot(ctx, &target, boot, &query).await?,
            None => query.clone(),
        };
        Ok((target, query))
    })
    .await;
    if targets.is_empty() {
        return Ok(status);
    }
    let (sources, mut merge) = Sources::new(query.lines);
    for (number, (target, query)) in targets.iter().enumerate() {
        if let Some(unit) = wish.unit(target.unit.clone()) {
            sources.add_unit(&mut merge, number, unit, query.clone());
        }
        if !wish.guest || !is_root() {
            continue;
        }
        match target.guest.clone().map(Place::guest) {
            Ok(guest) => sources.add_guest(&mut merge, number, guest, query),
            Err(reason) => ctx.voice.warning(&format!("machine '{}': {reason}", target.name)),
        }
    }
    let style = args
        .output
        .unwrap_or(if ctx.voice.json { Style::Json } else { Style::Short });
    let names: Arc<[MachineName]> = targets.iter().map(|(target, _)| target.name.clone()).collect();
    if wish.guest && !is_root() && args.follow {
        needs_root().show(ctx.voice);
    }
    let (voice, follow) = (ctx.voice, args.follow);
    let shown = spawn_blocking(move || show(merge, style, &names, voice, follow));
    if args.follow {
        sources.watch_output();
        let targets = targets.into_iter().map(|(target, _)| target).collect();
        let begins = follow::Begins { wish, query };
        tokio::select! {
            () = follow::machines(ctx, targets, &sources, &begins) => {}
            shown = shown => shown.map_err(|panic| internal_error(&panic))??,
        }
    } else {
        shown.await.map_err(|panic| internal_error(&panic))??;
    }
    if wish.guest && !is_root() {
        let error = needs_root();
        error.show(ctx.voice);
        status = error.kind.exit_status();
    }
    Ok(status)
}

fn needs_root() -> CliError {
    CliError::new(Kind::Denied, "machines' own journals are read for root only")
        .hint("run it as root: `sudo machinist …`, or see the host's journal alone: `--from supervisor --from console`")
}

/// The query that the options say, but for --boot.
async fn query(args: &Args, voice: Voice, cancel: &Cancel) -> Result<Query, CliError> {
    let style = args
        .output
        .unwrap_or(if voice.json { Style::Json } else { Style::Short });
    let lines = match args.lines {
        Some(Lines(lines)) => lines,
        None if args.follow && args.since.is_none() && args.boot.is_none() => Some(FOLLOWED),
        None => None,
    };
    Ok(Query {
        since: time(args.since.as_deref(), cancel).await?,
        until: time(args.until.as_deref(), cancel).await?,
        after: None,
        lines,
        follow: args.follow,
        fields: match style {
            Style::Json => None,
            Style::Short => Some(SHOWN.map(str::to_owned).into()),
            Style::Cat => Some(vec![SHOWN[0].to_owned()]),
        },
    })
}

/// A time of the command line.
async fn time(text: Option<&str>, cancel: &Cancel) -> Result<Option<u64>, CliError> {
    let Some(text) = text else { return Ok(None) };
    let (owned, cancel) = (text.to_owned(), cancel.clone());
    let found = spawn_blocking(move || logs::when(&owned, &cancel)).await;
    match found.map_err(|panic| internal_error(&panic))? {
        Ok(Some(time)) => Ok(Some(time)),
        Ok(None) => {
            let message = format!("'{}' is no time", printable(text));
            Err(CliError::usage(message).hint("such as `yesterday`, `-2h` or `2026-11-23 10:00`, see systemd.time(7)"))
        }
        Err(error) => Err(CliError::new(Kind::Failed, error.to_string())),
    }
}

async fn look_up(bus: &Bus, name: &MachineName) -> Result<Target, CliError> {
    let target = |unit, leader, guest| Target {
        name: name.clone(),
        unit,
        leader,
        guest,
    };
    match bus.registered(name.as_str()).await {
        Ok(machine) => {
            let guest = match Leader::open(machine.leader) {
                _ if machine.class != "container" => {
                    Err("the journal of a virtual machine cannot be read from outside")
                }
                Some(leader) if leader.shares("mnt") == Some(true) => {
                    Err("it has the host's own files, and no journal")
                }
                Some(leader) => Ok(Place::Leader(Arc::new(leader))),
                None => Err("it has just stopped: its own journal is left out"),
            };
            Ok(target(machine.unit, Some(machine.leader), guest))
        }
        Err(BusError::NoSuchMachine(_)) => {
            find_machine(bus, name).await.map_err(CliError::from).map_err(|error| {
                error.hint(format!(
                    "of a machine that is gone: `journalctl --unit {}`",
                    name.unit()
                ))
            })?;
            let image = bus.find_image_state(name.as_str()).await?.unwrap_or_default();
            let guest = match image.kind.as_str() {
                "raw" | "block" => Err("its own journal is in a disk image, and can be read while it runs"),
                _ => Ok(Place::Image(image.path.into())),
            };
            Ok(target(name.unit(), None, guest))
        }
        Err(error) => Err(error.into()),
    }
}

/// The query for one run of a machine.
async fn of_boot(ctx: &Ctx, target: &Target, boot: &str, query: &Query) -> Result<Query, CliError> {
    let (unit, cancel) = (target.unit.clone(), ctx.cancel.clone());
    let place = target.guest.as_ref().ok().filter(|_| is_root()).cloned();
    let wanted = boot.to_owned();
    let found = spawn_blocking(move || {
        let runs = logs::runs_of(&unit, &cancel)?;
        let Some(id) = Some(&wanted)
            .filter(|id| id.len() == 32)
            .and_then(|id| u128::from_str_radix(id, 16).ok())
        else {
            let number: Option<isize> = wanted.parse().ok();
            let at = number.and_then(|number| match number {
                1.. => usize::try_from(number - 1).ok(),
                _ => runs.len().checked_sub(1)?.checked_sub(number.unsigned_abs()),
            });
            return Ok(at.and_then(|at| runs.get(at).copied()));
        };
        let mut time = logs::invocation_began(&unit, &format!("{id:032x}"), &cancel)?;
        if time.is_none() {
            time = place.and_then(|place| logs::boot_began(&place.guest(), id));
        }
        let holds = |run: &&logs::Run| {
            time.is_some_and(|time| run.began <= time && run.ended.is_none_or(|ended| time <= ended))
        };
        Ok(runs.iter().find(holds).copied())
    });
    let found: Result<_, crate::sys::process::ProcessError> = found.await.map_err(|panic| internal_error(&panic))?;
    let name = &target.name;
    let run = match found {
        Ok(Some(run)) => run,
        Ok(None) => {
            let message = format!("the journal knows no boot '{}' of machine '{name}'", printable(boot));
            let error = CliError::new(Kind::Failed, message);
            let hint = "0 is the last, -1 the one before; without root only part of the host's journal can be read";
            return Err(error.hint(hint));
        }
        Err(error) => return Err(CliError::new(Kind::Failed, error.to_string())),
    };
    if run.ended.is_some() && query.follow {
        let message = format!(
            "boot '{}' of machine '{name}' is over: nothing follows",
            printable(boot)
        );
        return Err(CliError::usage(message).hint("leave out --follow"));
    }
    Ok(Query {
        since: Some(query.since.unwrap_or(0).max(run.began)),
        until: [query.until, run.ended].into_iter().flatten().min(),
        ..query.clone()
    })
}

/// Shows all that is told. Blocks.
fn show(mut merge: Merge, style: Style, names: &[MachineName], voice: Voice, follow: bool) -> Result<(), CliError> {
    let mut printer = Printer::new(style, names.len() > 1);
    let mut tell = |number: usize, told: Told<'_>| -> std::io::Result<()> {
        let name = names.get(number).map_or("", MachineName::as_str);
        match told {
            Told::Entry(from, entry) => {
                let fields: Vec<(&str, &[u8])> = entry.fields().collect();
                printer.show(&Shown {
                    machine: name,
                    source: From::of(from),
                    time: entry.time,
                    fields: &fields,
                })
            }
            Told::Note(note) => {
                voice.warning(&format!("machine '{name}': {note}"));
                Ok(())
            }
            Told::News(news) => {
                printer.flush()?;
                voice.status(news);
                Ok(())
            }
            Told::Pause => printer.flush(),
            Told::Closed => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    };
    merge.tell_past(&mut tell)?;
    if follow {
        merge.tell_live(&mut tell)?;
    }
    Ok(())
}
