//! What a long operation tells its caller, and how the caller stops it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Receives the progress of a long operation. The terminal implementation is in `output`; `()` ignores everything.
pub trait Report: Send + Sync {
    /// A new phase begins, in a few lower-case words: "unpacking web.tar.xz". Ends the former phase.
    fn phase(&self, what: &str);
    /// The current phase has done `done` of `total` units (bytes where it is about data); `total` is `None` if unknown.
    fn progress(&self, done: u64, total: Option<u64>);
    /// Something the user should know that is not an error.
    fn warn(&self, message: &str);
}

impl Report for () {
    fn phase(&self, _: &str) {}
    fn progress(&self, _: u64, _: Option<u64>) {}
    fn warn(&self, _: &str) {}
}

/// Set once by Ctrl-C or SIGTERM; long operations ask it between pieces of work. Clones share the same flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// The operation was cancelled before it became visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

impl Cancel {
    /// Asks everything that shares this flag to stop at its next check.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether [`Cancel::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// `Err(Cancelled)` once cancelled, for use with `?`.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }
}
