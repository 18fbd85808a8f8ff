//! Progress of long operations: a bar on a terminal, one line per phase elsewhere.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Voice;
use crate::machine::Report;

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows what a long operation reports, on stderr.
#[derive(Debug)]
pub struct Progress {
    voice: Voice,
    /// What the lines begin with: the machine's name.
    subject: String,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    phase: String,
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Progress of the work on `subject`.
    #[must_use]
    pub fn new(voice: Voice, subject: &str) -> Self {
        let current = Current {
            phase: String::new(),
            begun: Instant::now(),
            bar: None,
        };
        Self {
            voice,
            subject: subject.to_owned(),
            current: Mutex::new(current),
        }
    }

    fn silent(&self) -> bool {
        self.voice.quiet || self.voice.json
    }
}

impl Report for Progress {
    fn phase(&self, what: &str) {
        if self.silent() {
            return;
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = current.bar.take() {
            bar.finish_and_clear();
        }
        what.clone_into(&mut current.phase);
        current.begun = Instant::now();
        self.voice.status(&format!("{}: {what}", self.subject));
    }

    fn progress(&self, done: u64, total: Option<u64>) {
        if self.silent() || !std::io::stderr().is_terminal() {
            return;
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.bar.is_none() && current.begun.elapsed() >= PATIENCE {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(5));
            let template = if total.is_some() {
                "{prefix}: [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
            } else {
                "{prefix}: {spinner} {bytes} {bytes_per_sec}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(crate::machine::text::printable(&current.phase));
            current.bar = Some(bar);
        }
        if let Some(bar) = &current.bar {
            bar.set_position(done);
        }
    }

    fn warn(&self, message: &str) {
        self.voice.warning(&format!("{}: {message}", self.subject));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let current = self.current.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = current.bar.take() {
            bar.finish_and_clear();
        }
    }
}
