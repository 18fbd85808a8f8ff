//! A console that can be typed into: our terminal at the machine's.

use std::io::{IsTerminal as _, Write as _, stdin, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::termios::{QueueSelector, tcflush};
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::Target;
use super::journal::until_over;
use crate::cli::attach::RESET;
use crate::cli::context::{Ctx, internal_error};
use crate::cli::error::{CliError, Kind};
use crate::cli::exec::copy;
use crate::cli::exec::shell::status_of;
use crate::cli::exec::signals::{Event, Signals};
use crate::output::entry::last_lines;
use crate::sys::bus::Bus;
use crate::sys::console::{Console, Told};
use crate::sys::enter::RawTerminal;
use crate::sys::enter::relay::read_typed;
use crate::sys::journal::audit;

/// How long whoever keeps the console may take to be there again, or to have a place for us.
const AWAY: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(100);

/// Sits at a console until the machine stops, or it is left.
pub(super) async fn attach(ctx: &Ctx, target: &Target, console: Console, lines: Option<usize>) -> Result<u8, CliError> {
    let name = &target.name;
    // From here on signals end the session.
    let _busy = ctx.hold();
    let mut signals = Signals::listen()?;
    ctx.voice.status(&format!(
        "connected to the console of {name}; press ^] three times within a second to leave"
    ));
    let raw = RawTerminal::new(stdin())?;
    audit(name.as_str(), "console", Ok(()));
    let (at, resized_here) = (Arc::new(At::default()), Arc::new(Notify::new()));
    let (leave, left) = oneshot::channel();
    let mut left = left.fuse();
    let typed = Arc::clone(&at);
    read_typed(copy(stdin())?, leave, move |keys| typed.types(keys));

    let mut over = std::pin::pin!(until_over(ctx, &target.unit));
    let (mut console, mut lines) = (Some(console), lines);
    let (mut until, mut is_full) = (Instant::now() + AWAY, false);
    let end = 'attached: loop {
        let Some(here) = console.take() else {
            break if is_full { End::Full } else { End::Lost };
        };
        at.is(here.try_clone()?);
        at.resize();
        let resized = Arc::clone(&resized_here);
        let mut shown = spawn_blocking(move || show(&here, lines, &resized));
        loop {
            tokio::select! {
                shown = &mut shown => match shown.map_err(|panic| internal_error(&panic)).flatten() {
                    Ok(was_live) => {
                        is_full = !was_live;
                        if was_live {
                            until = Instant::now() + AWAY;
                        }
                        break;
                    }
                    Err(error) => break 'attached End::Failed(error),
                },
                Ok(()) = &mut left => break 'attached End::Left,
                () = &mut over => break 'attached End::Over,
                () = resized_here.notified() => tell_of_size(&target.unit).await,
                event = signals.next() => match event {
                    Event::Resized => at.resize(),
                    Event::Signal(signal) => break 'attached End::Signal(status_of(signal)),
                },
            }
        }
        if !is_full {
            // What was shown before it went is on the terminal already.
            lines = Some(0);
        }
        // The machine has stopped, or whoever keeps its console is started anew.
        while console.is_none() && Instant::now() < until {
            tokio::select! {
                Ok(()) = &mut left => break 'attached End::Left,
                () = &mut over => break 'attached End::Over,
                Event::Signal(signal) = signals.next() => break 'attached End::Signal(status_of(signal)),
                () = sleep(PAUSE) => console = Console::connect(name).ok().flatten(),
            }
        }
    };
    at.close();
    if stdout().is_terminal() {
        let _ = stdout().write_all(RESET).and_then(|()| stdout().flush());
    }
    // What a terminal answers to questions of the machine is not for the shell here.
    let _ = tcflush(stdin(), QueueSelector::IFlush);
    drop(raw);
    match end {
        End::Left => {
            ctx.voice.status(&format!("left {name}, whose console goes on"));
            Ok(0)
        }
        End::Over => {
            ctx.voice.status(&format!("machine '{name}' has stopped"));
            Ok(0)
        }
        End::Signal(status) => Ok(status),
        End::Failed(error) => Err(error),
        End::Full => {
            let message = format!("the console of machine '{name}' has no place for one more");
            let hint = "32 can be at it at once: leave one of them with ^] three times".to_owned();
            Err(CliError::new(Kind::Failed, message).hint(hint))
        }
        End::Lost => {
            let message = format!("nobody keeps the console of machine '{name}' any more");
            let hint = format!("see `journalctl --unit machinist-console@{name}`");
            Err(CliError::new(Kind::Failed, message).hint(hint))
        }
    }
}

enum End {
    Left,
    Over,
    Signal(u8),
    Failed(CliError),
    Lost,
    /// Whoever keeps it takes nobody else.
    Full,
}

/// The connection that what is typed goes to.
#[derive(Default)]
struct At {
    console: std::sync::Mutex<Option<Console>>,
    closed: AtomicBool,
    /// What was typed last was not taken.
    stuck: AtomicBool,
}

impl At {
    fn now(&self) -> Option<Console> {
        let console = self.console.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        console.as_ref().and_then(|console| console.try_clone().ok())
    }

    fn is(&self, console: Console) {
        *self.console.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(console);
    }

    /// What is typed while nobody listens is lost: whoever waits for that does not see that he is to leave.
    fn types(&self, keys: &[u8]) -> bool {
        if let Some(console) = self.now() {
            let typed = console.types(keys, !self.stuck.load(Ordering::Relaxed));
            self.stuck.store(typed.is_err(), Ordering::Relaxed);
        }
        !self.closed.load(Ordering::Relaxed)
    }

    /// Gives the machine's terminal the size of ours.
    fn resize(&self) {
        if let Some(console) = self.now() {
            let _ = console.has_size_of(stdin());
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(console) = self.now() {
            console.close();
        }
    }
}

/// Has systemd-nspawn look at the size of its terminal, which is nobody's controlling one: the kernel tells nobody.
async fn tell_of_size(unit: &str) {
    if let Ok(bus) = Bus::system(false).await {
        let _ = bus.signal_main(unit, rustix::process::Signal::WINCH.as_raw()).await;
    }
}

/// Shows what comes until the other side has gone. What was shown before comes as text that steers no terminal: questions to
/// a terminal among it would be answered once more. False if nothing was shown at all. Blocks.
fn show(console: &Console, lines: Option<usize>, resized: &Notify) -> Result<bool, CliError> {
    let (mut history, mut was_live) = (Vec::new(), false);
    let write = |bytes: &[u8]| stdout().write_all(bytes).and_then(|()| stdout().flush());
    let listened = console.listen(|told| match told {
        Told::History(text) => {
            history.extend_from_slice(text);
            Ok(())
        }
        Told::Live => {
            was_live = true;
            let text = last_lines(&history, lines).join("\r\n");
            history = Vec::new();
            write(text.as_bytes())
        }
        Told::Shown(text) => write(text),
        Told::Resized => {
            resized.notify_one();
            Ok(())
        }
    });
    Ok(listened.map(|()| was_live)?)
}
