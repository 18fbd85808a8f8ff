//! `machinist top`

mod full;
mod screen;

use std::io::{IsTerminal as _, stdin, stdout};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::LocalBoxStream;
use serde_json::json;

use super::complete;
use super::context::Ctx;
use super::error::{CliError, Kind};
use super::events::patterns;
use crate::machine::load::Load;
use crate::machine::text::{bytes, printable};
use crate::output::table::{Column, TableArgs, View};
use crate::output::{time, until_closed};
use crate::sys::bus::{Bus, BusError};
use crate::sys::loads::Loads;

/// Show what running machines use, again and again
///
/// CPU, memory, tasks, disks and network of each, and the limits where there are any: 120.0M/512.0M. CPU is in percent of one
/// CPU; what is read, written, received and sent is in bytes a second. `-` is what this host does not count, or what may not be
/// read. Names may be patterns: machines to come are shown, too.
///
/// On the terminal: c, m, t, i and n sort by CPU, memory, tasks, disks (IO) and network, N by name; r turns the order round;
/// arrows, PgUp, PgDn, Home and End scroll; q or Ctrl-C ends it. --sort says how it begins.
///
/// With --json each round is one array on a line of its own, with --once there is one. Numbers are integers: cpu, cpu_limit
/// and cpu_total in microseconds (the first two a second: 1000000 is one CPU), all others in bytes, but for tasks; null is
/// unknown, or no limit.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist top                                    All machines, until q is pressed
  machinist top 'web*' --interval 5                Some, every five seconds
  machinist top --once --sort -memory              One table: the largest first
  machinist top --json --interval 10 | jq -c '.[]'  For scripts, until it is told to end

Columns: name, cpu, memory, tasks, io_read, io_write, net_rx, net_tx; and cpu_limit, cpu_total, memory_limit, tasks_limit,
time.")]
pub(super) struct Args {
    /// Machines, or patterns of running machines' names
    #[arg(value_name = "NAME", add = complete::running())]
    names: Vec<String>,
    /// Print one table and end
    #[arg(long)]
    once: bool,
    /// How long a round takes; 1, or 0.25 with --once
    #[arg(short, long, value_name = "SECONDS", value_parser = interval)]
    interval: Option<Duration>,
    #[command(flatten)]
    table: TableArgs,
}

/// How long a round takes on the terminal.
const ROUND: Duration = Duration::from_secs(1);
/// How long is measured for one table.
const ONCE: Duration = Duration::from_millis(250);

const COLUMNS: &[Column<Load>] = &[
    Column {
        key: "name",
        shown: true,
        value: |load| json!(load.name),
        text: None,
    },
    Column {
        key: "cpu",
        shown: true,
        value: |load| json!(load.cpu),
        text: Some(|load| of(load.cpu.map(percent), load.cpu_limit.map(whole_percent))),
    },
    Column {
        key: "cpu_limit",
        shown: false,
        value: |load| json!(load.cpu_limit),
        text: Some(|load| or_none(load.cpu_limit.map(whole_percent))),
    },
    Column {
        key: "cpu_total",
        shown: false,
        value: |load| json!(load.cpu_total),
        text: Some(|load| or_none(load.cpu_total.map(seconds_of))),
    },
    Column {
        key: "memory",
        shown: true,
        value: |load| json!(load.memory),
        text: Some(|load| of(load.memory.map(bytes), load.memory_limit.map(bytes))),
    },
    Column {
        key: "memory_limit",
        shown: false,
        value: |load| json!(load.memory_limit),
        text: Some(|load| or_none(load.memory_limit.map(bytes))),
    },
    Column {
        key: "tasks",
        shown: true,
        value: |load| json!(load.tasks),
        text: Some(|load| {
            let number = |number: u64| number.to_string();
            of(load.tasks.map(number), load.tasks_limit.map(number))
        }),
    },
    Column {
        key: "tasks_limit",
        shown: false,
        value: |load| json!(load.tasks_limit),
        text: None,
    },
    Column {
        key: "io_read",
        shown: true,
        value: |load| json!(load.io_read),
        text: Some(|load| or_none(load.io_read.map(bytes))),
    },
    Column {
        key: "io_write",
        shown: true,
        value: |load| json!(load.io_write),
        text: Some(|load| or_none(load.io_write.map(bytes))),
    },
    Column {
        key: "net_rx",
        shown: true,
        value: |load| json!(load.net_rx),
        text: Some(|load| or_none(load.net_rx.map(bytes))),
    },
    Column {
        key: "net_tx",
        shown: true,
        value: |load| json!(load.net_tx),
        text: Some(|load| or_none(load.net_tx.map(bytes))),
    },
    Column {
        key: "time",
        shown: false,
        value: |load| json!(time::rfc3339(load.time)),
        text: Some(|load| time::local(load.time)),
    },
];

fn or_none(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// What is used of what may be.
fn of(used: Option<String>, limit: Option<String>) -> String {
    let used = or_none(used);
    limit.map_or(used.clone(), |limit| format!("{used}/{limit}"))
}

/// Of µs a second.
fn percent(micros: u64) -> String {
    format!("{}.{}%", micros / 10_000, micros / 1000 % 10)
}

fn whole_percent(micros: u64) -> String {
    format!("{}%", micros / 10_000)
}

fn seconds_of(micros: u64) -> String {
    format!("{}.{:03}s", micros / 1_000_000, micros / 1000 % 1000)
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = super::seconds(text)?;
    if interval < Duration::from_millis(100) {
        return Err("0.1 seconds is the least".to_owned());
    }
    Ok(interval)
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, &args.table, ctx.voice)?;
    let on_screen = !args.once && !ctx.voice.json && args.table.format.is_none();
    if on_screen && !(stdin().is_terminal() && stdout().is_terminal()) {
        let message = "it fills the screen, and standard input or output is no terminal";
        return Err(CliError::usage(message).hint("`machinist top --once` prints one table, `--json` one a second"));
    }
    let mut watch = Watch::begin(&args.names).await?;
    if on_screen {
        full::show(
            &mut watch,
            &view,
            args.table.sort.is_some(),
            args.interval.unwrap_or(ROUND),
        )
        .await?;
        return Ok(0);
    }
    let pause = args.interval.unwrap_or(if args.once { ONCE } else { ROUND });
    let closed = tokio::task::spawn_blocking(until_closed);
    tokio::select! {
        result = rounds(ctx, &mut watch, &view, pause, args.once) => result.map(|()| 0),
        _ = closed => Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()),
    }
}

/// Prints what is used, once or until nobody reads it.
async fn rounds(
    ctx: &Ctx,
    watch: &mut Watch,
    view: &View<'_, Load>,
    pause: Duration,
    once: bool,
) -> Result<(), CliError> {
    watch.read().await;
    let mut rounds = every(pause);
    loop {
        tokio::select! {
            _ = rounds.tick() => {
                view.print(watch.read().await, "machine", ctx.voice)?;
                if once {
                    return Ok(());
                }
            }
            change = watch.change() => watch.hear(change).await,
        }
    }
}

/// The first is not at once.
fn every(pause: Duration) -> tokio::time::Interval {
    // What cannot be added to the time is for ever.
    let far = tokio::time::Instant::now() + Duration::from_secs(86_400 * 365);
    let first = tokio::time::Instant::now().checked_add(pause).unwrap_or(far);
    let mut rounds = tokio::time::interval_at(first, pause);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    rounds
}

/// A machine has come, or gone; `None` if the bus is gone.
type Change = Option<(String, bool)>;

/// The machines that are wanted, as they come and go.
struct Watch {
    patterns: Vec<glob::Pattern>,
    loads: Loads,
    /// `None` while the bus is away.
    changes: Option<LocalBoxStream<'static, (String, bool)>>,
}

impl Watch {
    /// The machines that there are. Each name has to be that of one, or to match one.
    async fn begin(names: &[String]) -> Result<Self, CliError> {
        let patterns = patterns(names)?;
        let (changes, bus) = connect().await?;
        let mut watch = Self {
            patterns,
            loads: Loads::new(bus),
            changes: Some(changes),
        };
        watch.look().await?;
        for (pattern, name) in watch.patterns.iter().zip(names) {
            if watch.loads.names().any(|known| pattern.matches(known)) {
                continue;
            }
            if !name.contains(['*', '?', '[']) {
                return Err(BusError::NoSuchMachine(name.clone()).into());
            }
            let message = format!("no running machine matches '{}'", printable(name));
            return Err(CliError::new(Kind::NotFound, message).hint("see `machinist list`"));
        }
        Ok(watch)
    }

    async fn look(&mut self) -> Result<(), BusError> {
        let patterns = &self.patterns;
        self.loads.look(|name| wanted(patterns, name)).await
    }

    /// What the machines use now.
    async fn read(&mut self) -> Vec<Load> {
        // Without the bus those that are known are still read.
        if self.changes.is_none()
            && let Ok((changes, bus)) = connect().await
        {
            self.loads.ask_by(bus);
            if self.look().await.is_ok() {
                self.changes = Some(changes);
            }
        }
        self.loads.read().await
    }

    /// Waits for a change.
    async fn change(&mut self) -> Change {
        match &mut self.changes {
            Some(changes) => changes.next().await,
            None => std::future::pending().await,
        }
    }

    async fn hear(&mut self, change: Change) {
        match change {
            Some((name, true)) if wanted(&self.patterns, &name) => self.loads.come(name).await,
            Some((_, true)) => {}
            Some((name, false)) => self.loads.leave(&name),
            None => self.changes = None,
        }
    }
}

fn wanted(patterns: &[glob::Pattern], name: &str) -> bool {
    name != ".host" && (patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name)))
}

/// What is said of machines from now on, and a connection for questions: nothing is answered on one whose signals wait.
async fn connect() -> Result<(LocalBoxStream<'static, (String, bool)>, Bus), BusError> {
    let changes = Bus::system(false).await?.comings_and_goings().await?;
    Ok((changes.boxed_local(), Bus::system(false).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stands_before_its_limit() {
        let load = Load {
            cpu: Some(1_234_567),
            cpu_limit: Some(1_500_000),
            memory: Some(5 << 20),
            tasks_limit: Some(100),
            cpu_total: Some(1_002_003),
            ..Load::default()
        };
        let text = |key: &str| {
            let column = COLUMNS.iter().find(|column| column.key == key).unwrap();
            column.text.unwrap()(&load)
        };
        assert_eq!(text("cpu"), "123.4%/150%");
        assert_eq!(text("memory"), "5.0M");
        assert_eq!(text("tasks"), "-/100");
        assert_eq!(text("io_read"), "-");
        assert_eq!(text("cpu_total"), "1.002s");
    }

    #[test]
    fn rounds_take_their_time() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "0.01", "-1", "inf", "x"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
