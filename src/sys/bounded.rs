//! Work that another party can hold up, each piece on a thread of its own and with a deadline.

use std::time::Duration;

use crate::machine::Seen;

/// How long one guest may hold up a table.
pub const PATIENCE: Duration = Duration::from_millis(200);

/// Runs `work` on a thread of its own and waits for it no longer than [`PATIENCE`].
///
/// A thread that is held up (a FUSE mount in a guest that never answers) is left behind: it holds nothing but its own
/// file descriptors and ends with the process. A thread of its own also is what setns(2) asks for.
pub(crate) async fn ask<T: Send + 'static>(work: impl FnOnce() -> Option<T> + Send + 'static) -> Seen<T> {
    let (sender, answer) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
        // Nobody waits any more: the answer came too late.
        let _ = sender.send(work());
    });
    if spawned.is_err() {
        return Seen::None;
    }
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(value)) => value.into(),
        // The thread panicked: as good as no answer.
        Ok(Err(_)) => Seen::None,
        Err(_) => Seen::TimedOut,
    }
}
