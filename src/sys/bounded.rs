//! Work that another party can hold up, each piece on a thread of its own and with a deadline.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::machine::Seen;

/// How long one guest may hold up a table.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// Bytes of stack of such a thread.
const STACK: usize = 256 * 1024;

/// Runs `work` on a thread of its own and waits for it no longer than [`PATIENCE`].
///
/// A thread that is held up (a FUSE mount in a guest that never answers) is left behind: it holds nothing but its own
/// file descriptors and ends with the process. A thread of its own also is what setns(2) asks for.
pub(crate) async fn ask<T: Send + 'static>(work: impl FnOnce() -> Option<T> + Send + 'static) -> Seen<T> {
    let (sender, answer) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new().stack_size(STACK).spawn(move || {
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

/// Runs what `make` makes for one item after the other on one thread, and waits for each no longer than [`PATIENCE`].
///
/// Starting a thread takes as long as most answers do. One item that takes longer is given up; those after it then get a
/// thread each, so that any number of them hold the table up no longer than two.
pub(crate) async fn ask_each<I, T, W>(items: Vec<I>, make: impl Fn() -> W + Clone + Send + 'static) -> Vec<Seen<T>>
where
    I: Clone + Send + 'static,
    T: Send + 'static,
    W: FnMut(I) -> Option<T>,
{
    let answers = in_turn(items.clone(), make.clone()).await;
    let mut seen: Vec<Seen<T>> = answers.into_iter().map(Seen::from).collect();
    if seen.len() < items.len() {
        seen.push(Seen::TimedOut);
        let rest = items.into_iter().skip(seen.len()).map(|item| {
            let make = make.clone();
            ask(move || make()(item))
        });
        seen.extend(join_all(rest).await);
    }
    seen
}

struct Turn<T> {
    answers: Vec<Option<T>>,
    /// When the work on the present item began.
    since: Instant,
    /// Nobody waits any more.
    given_up: bool,
}

/// The answers up to the first that does not come in time.
async fn in_turn<I, T, W>(items: Vec<I>, make: impl Fn() -> W + Send + 'static) -> Vec<Option<T>>
where
    I: Send + 'static,
    T: Send + 'static,
    W: FnMut(I) -> Option<T>,
{
    let (ended, mut end) = tokio::sync::oneshot::channel::<()>();
    let answers = Vec::with_capacity(items.len());
    let turn = Arc::new(Mutex::new(Turn {
        answers,
        since: Instant::now(),
        given_up: false,
    }));
    let shared = Arc::clone(&turn);
    // Without a thread `ended` is gone at once, and there are no answers.
    let _ = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        let _ended = ended;
        let mut work = make();
        for item in items {
            let answer = work(item);
            let mut turn = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if turn.given_up {
                return;
            }
            turn.answers.push(answer);
            turn.since = Instant::now();
        }
    });
    loop {
        let since = turn.lock().unwrap_or_else(PoisonError::into_inner).since;
        let in_time = tokio::time::timeout(PATIENCE.saturating_sub(since.elapsed()), &mut end).await;
        let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if in_time.is_ok() || turn.since == since {
            turn.given_up = true;
            return std::mem::take(&mut turn.answers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn only_what_is_late_is_given_up() {
        let work = || {
            |item: u32| {
                if item >= 4 {
                    std::thread::sleep(PATIENCE * 3);
                }
                (item != 2).then_some(item)
            }
        };
        let value = Seen::Value::<u32>;
        assert_eq!(ask_each(vec![1, 2, 3], work).await, [value(1), Seen::None, value(3)]);
        let began = Instant::now();
        let seen = ask_each(vec![1, 2, 4, 3, 5, 6, 7], work).await;
        let late = Seen::TimedOut;
        assert_eq!(
            seen,
            [
                value(1),
                Seen::None,
                late.clone(),
                value(3),
                late.clone(),
                late.clone(),
                late
            ]
        );
        assert!(began.elapsed() < PATIENCE * 3);
    }
}
