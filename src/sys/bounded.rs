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

/// Runs `work` for one item after the other on a thread of its own, and waits for each no longer than [`PATIENCE`].
///
/// One that takes longer is given up with all that come after it: for work in which no guest has a hand.
pub(crate) async fn ask_each<I, T>(items: Vec<I>, mut work: impl FnMut(I) -> Option<T> + Send + 'static) -> Vec<Seen<T>>
where
    I: Send + 'static,
    T: Send + 'static,
{
    let count = items.len();
    let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
    // Without a thread the sender is gone, and nothing was seen.
    let _ = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
        for item in items {
            if sender.send(work(item)).is_err() {
                return;
            }
        }
    });
    let mut seen = Vec::with_capacity(count);
    while seen.len() < count {
        match tokio::time::timeout(PATIENCE, answers.recv()).await {
            Ok(answer) => seen.push(answer.flatten().into()),
            Err(_) => seen.resize_with(count, || Seen::TimedOut),
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_late_is_given_up_and_what_came_before_stays() {
        let seen = ask_each(vec![1, 2, 3, 4], |item| {
            if item == 3 {
                std::thread::sleep(PATIENCE * 2);
            }
            (item != 2).then_some(item)
        });
        assert_eq!(seen.await, [Seen::Value(1), Seen::None, Seen::TimedOut, Seen::TimedOut]);
    }
}
