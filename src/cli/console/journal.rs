//! What a console has shown, and shows: as the host's journal has it.

use std::io::stdin;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::{Target, has_terminal};
use crate::cli::context::{Ctx, internal_error, is_root};
use crate::cli::error::{CliError, Kind};
use crate::cli::exec::copy;
use crate::cli::logs::SHOWN;
use crate::machine::MachineName;
use crate::output::Voice;
use crate::output::entry::{Printer, Shown, Style};
use crate::sys::bus::Bus;
use crate::sys::enter::RawTerminal;
use crate::sys::enter::relay::carry_typed;
use crate::sys::logs::{self, CURSOR, Merge, Query, Sources, Told, Unit};

/// How long to wait until the bus is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a unit is looked at where systemd says nothing: what happens while it is executed anew is not told.
const LOOK: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    /// Of what is there, the last so many lines; all if `None`.
    pub(super) lines: Option<usize>,
    /// What comes, too.
    pub(super) follow: bool,
}

/// What was shown.
#[derive(Default)]
struct Seen {
    count: usize,
    /// The last of it.
    cursor: Option<String>,
}

pub(super) async fn run(ctx: &Ctx, target: &Target, wish: Wish) -> Result<u8, CliError> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let now = u64::try_from(now.as_micros()).unwrap_or(0);
    let began = last_run(ctx, &target.unit).await?;
    if began.is_none() && !is_root() {
        let message = format!(
            "what the journal has of the console of machine '{}' is not for you",
            target.name
        );
        let hint = "run it as root: `sudo machinist …`, or join the group systemd-journal";
        return Err(CliError::new(Kind::Denied, message).hint(hint));
    }
    let style = if ctx.voice.json { Style::Json } else { Style::Cat };
    let query = Query {
        since: began,
        lines: wish.lines,
        follow: wish.follow,
        fields: (style != Style::Json).then(|| SHOWN.map(str::to_owned).into()),
        ..Query::default()
    };
    let teller = Teller {
        voice: ctx.voice,
        name: target.name.clone(),
        style,
        over: Arc::default(),
    };
    if !wish.follow {
        let (_, shown) = start(target, query, &teller);
        let seen = shown.await.map_err(|panic| internal_error(&panic))??;
        return after_all(ctx, target, seen.count > 0 || wish.lines == Some(0));
    }
    ctx.voice.status(&format!(
        "the console of {}, to be read only; press ^] three times within a second, or Ctrl-C, to leave",
        target.name
    ));
    let (_keys, left) = keys()?;
    let mut left = left.fuse();
    let (sources, mut shown) = start(target, query.clone(), &teller);
    sources.watch_output();
    tokio::select! {
        shown = &mut shown => {
            shown.map_err(|panic| internal_error(&panic))??;
            return Ok(0);
        }
        Ok(()) = &mut left => {
            ctx.voice.status(&format!("left {}", target.name));
            return Ok(0);
        }
        () = until_over(ctx, &target.unit) => {}
    }
    // What it showed last may not have been told yet.
    teller.over.store(true, Ordering::Relaxed);
    sources.close();
    let seen = shown.await.map_err(|panic| internal_error(&panic))??;
    let cancel = ctx.cancel.clone();
    let _ = spawn_blocking(move || logs::sync(&cancel)).await;
    let since = if wish.lines == Some(0) { Some(now) } else { began };
    let rest = Query {
        since: since.filter(|_| seen.cursor.is_none()),
        after: seen.cursor,
        lines: None,
        follow: false,
        ..query
    };
    let (_, shown) = start(target, rest, &teller);
    shown.await.map_err(|panic| internal_error(&panic))??;
    ctx.voice.status(&format!("machine '{}' has stopped", target.name));
    Ok(0)
}

/// What is to be said of a machine whose last words were shown.
fn after_all(ctx: &Ctx, target: &Target, said_something: bool) -> Result<u8, CliError> {
    let name = &target.name;
    if target.runs {
        return Ok(0);
    }
    if !said_something {
        let message = format!("machine '{name}' is not running, and the journal has nothing of its console");
        return Err(CliError::new(Kind::Failed, message).hint(format!("start it with `machinist start {name}`")));
    }
    ctx.voice
        .status(&format!("machine '{name}' is not running: that was its last run"));
    Ok(0)
}

/// When a unit was last started, in µs since 1970, as the journal knows it.
async fn last_run(ctx: &Ctx, unit: &str) -> Result<Option<u64>, CliError> {
    let (unit, cancel) = (unit.to_owned(), ctx.cancel.clone());
    let runs = spawn_blocking(move || logs::runs_of(&unit, &cancel)).await;
    let runs = runs.map_err(|panic| internal_error(&panic))?;
    match runs {
        Ok(runs) => Ok(runs.last().map(|run| run.began)),
        // journalctl fails where it may read nothing.
        Err(_) if !is_root() => Ok(None),
        Err(error) => Err(CliError::new(Kind::Failed, error.to_string())),
    }
}

/// Has the keys of our terminal, if we have one to ourselves, tell when to leave.
fn keys() -> std::io::Result<(Option<RawTerminal>, oneshot::Receiver<()>)> {
    let (leave, left) = oneshot::channel();
    if !has_terminal() {
        return Ok((None, left));
    }
    let terminal = RawTerminal::for_keys(stdin())?;
    let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    carry_typed(copy(stdin())?, OwnedFd::from(nowhere), leave);
    Ok((Some(terminal), left))
}

/// Returns when a unit is down and stays so: a reboot is no end. The bus may go meanwhile.
pub(super) async fn until_over(ctx: &Ctx, unit: &str) {
    let mut bus = ctx.bus().await.ok().cloned();
    loop {
        if let Some(bus) = &bus
            && is_over(bus, unit).await
        {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        bus = Bus::system(false).await.ok();
    }
}

/// Waits until it is over, or the bus is gone: then it is not.
async fn is_over(bus: &Bus, unit: &str) -> bool {
    let _ = bus.subscribe().await;
    let Ok(mut changes) = bus.unit_changes(unit).await else {
        return false;
    };
    loop {
        match bus.is_unit_over(unit).await {
            Ok(true) => return true,
            Ok(false) => {}
            Err(_) => return false,
        }
        if let Ok(None) = tokio::time::timeout(LOOK, changes.next()).await {
            return false;
        }
    }
}

type Showing = tokio::task::JoinHandle<Result<Seen, CliError>>;

/// Begins to show what the journal has.
fn start(target: &Target, query: Query, teller: &Teller) -> (Sources, Showing) {
    let (sources, mut merge) = Sources::new(query.lines);
    let follow = query.follow;
    let unit = Unit {
        name: target.unit.clone(),
        supervisor: false,
        console: true,
    };
    sources.add_unit(&mut merge, 0, unit, query);
    let teller = teller.clone();
    (sources, spawn_blocking(move || teller.show(merge, follow)))
}

/// Who shows it.
#[derive(Clone)]
struct Teller {
    voice: Voice,
    name: MachineName,
    style: Style,
    /// The machine has stopped: nothing more comes.
    over: Arc<AtomicBool>,
}

/// Why no more is shown.
enum End {
    Over,
    Failed(std::io::Error),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Teller {
    /// Shows all that is told. Blocks.
    fn show(&self, mut merge: Merge, follow: bool) -> Result<Seen, CliError> {
        let mut printer = Printer::new(self.style, false);
        let mut seen = Seen::default();
        let mut tell = |_, told: Told<'_>| -> Result<(), End> {
            match told {
                Told::Entry(_, entry) => {
                    let fields: Vec<(&str, &[u8])> = entry.fields().collect();
                    printer.show(&Shown {
                        machine: self.name.as_str(),
                        source: "console",
                        time: entry.time,
                        fields: &fields,
                    })?;
                    seen.count += 1;
                    seen.cursor = entry.text(CURSOR).or(seen.cursor.take());
                }
                Told::Note(note) => self.voice.warning(&format!("machine '{}': {note}", self.name)),
                Told::News(news) => self.voice.status(news),
                Told::Pause => printer.flush()?,
                Told::Closed if self.over.load(Ordering::Relaxed) => {
                    printer.flush()?;
                    return Err(End::Over);
                }
                Told::Closed => return Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()),
            }
            Ok(())
        };
        let mut ended = merge.tell_past(&mut tell);
        if follow && ended.is_ok() {
            ended = merge.tell_live(&mut tell);
        }
        match ended {
            Ok(()) | Err(End::Over) => Ok(seen),
            Err(End::Failed(error)) => Err(error.into()),
        }
    }
}
