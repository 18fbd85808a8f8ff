//! The terminal that `top` fills: what it was before, it is again afterwards, however that ends.

use std::io::{Write as _, stdin, stdout};
use std::time::Duration;

use rustix::termios::tcgetwinsize;
use tokio::signal::unix::{SignalKind, signal};

use super::screen::{By, Screen, Typed};
use super::{Watch, every};
use crate::cli::error::CliError;
use crate::machine::load::Load;
use crate::output::table::View;
use crate::sys::enter::{Keyboard, RawTerminal};

/// The other screen, without a cursor, and no wrapping.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &[u8] = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Shows the machines until a key, a signal, or the end of the terminal.
pub(super) async fn show(
    watch: &mut Watch,
    view: &View<'_, Load>,
    sorted: bool,
    pause: Duration,
) -> Result<(), CliError> {
    let mut resized = signal(SignalKind::window_change())?;
    let mut screen = Screen::new((!sorted).then_some(By::Cpu));
    let mut typed = Typed::default();
    let mut loads = watch.read().await;
    let mut rounds = every(pause);
    let terminal = Terminal::enter()?;
    put(screen.draw(view, &loads, pause, size()).as_bytes())?;
    loop {
        tokio::select! {
            _ = rounds.tick() => loads = watch.read().await,
            _ = resized.recv() => {}
            change = watch.change() => {
                watch.hear(change).await;
                // The next round shows it: what comes by dozens is not drawn by dozens.
                continue;
            }
            bytes = terminal.keyboard.read() => {
                let bytes = bytes?;
                let goes_on = typed.take(&bytes).into_iter().all(|key| screen.press(key));
                // Nothing at all: the terminal is gone.
                if bytes.is_empty() || !goes_on {
                    return Ok(());
                }
            }
        }
        put(screen.draw(view, &loads, pause, size()).as_bytes())?;
    }
}

/// Rows and columns; a terminal that does not know has those of the first ones.
fn size() -> (usize, usize) {
    let size = tcgetwinsize(stdout()).ok();
    let size = size.map(|size| (usize::from(size.ws_row), usize::from(size.ws_col)));
    size.filter(|(rows, columns)| *rows > 0 && *columns > 0)
        .unwrap_or((24, 80))
}

/// Ours until this is dropped.
struct Terminal {
    keyboard: Keyboard,
    _raw: RawTerminal,
}

impl Terminal {
    fn enter() -> std::io::Result<Self> {
        // Made before: from here on it is left again.
        let terminal = Self {
            keyboard: Keyboard::new(stdin())?,
            _raw: RawTerminal::new(stdin())?,
        };
        // What a panic says is not to vanish with the other screen.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = put(LEAVE);
            before(panic);
        }));
        put(ENTER)?;
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // In a panic the hook has done so.
        if !std::thread::panicking() {
            let _ = std::panic::take_hook();
            let _ = put(LEAVE);
        }
    }
}

fn put(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}
