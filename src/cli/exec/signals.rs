//! Our own signals while a command runs: they are meant for the command.

use std::task::Poll;
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::cli::error::{CliError, Kind};
use crate::sys::enter::{EnterError, Exit, Running};

/// How long a command may take to start once we are to end.
const GRACE: Duration = Duration::from_secs(1);

/// What our own signals ask for. What the terminal sends with a key reaches only us: the command has a session of its own.
#[derive(Clone)]
pub(in crate::cli) enum Event {
    /// To be passed on.
    Signal(Signal),
    /// The terminal has another size.
    Resized,
}

/// Our own signals, from the moment of listening.
pub(in crate::cli) struct Signals(Vec<(tokio::signal::unix::Signal, Event)>);

impl Signals {
    pub(in crate::cli) fn listen() -> std::io::Result<Self> {
        let passed_on = [
            (SignalKind::interrupt(), Signal::INT),
            (SignalKind::terminate(), Signal::TERM),
            (SignalKind::hangup(), Signal::HUP),
            (SignalKind::quit(), Signal::QUIT),
            (SignalKind::user_defined1(), Signal::USR1),
            (SignalKind::user_defined2(), Signal::USR2),
        ];
        let mut all = vec![(signal(SignalKind::window_change())?, Event::Resized)];
        for (kind, number) in passed_on {
            all.push((signal(kind)?, Event::Signal(number)));
        }
        Ok(Self(all))
    }

    pub(in crate::cli) async fn next(&mut self) -> Event {
        std::future::poll_fn(|context| {
            for (stream, event) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(event.clone());
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Returns when we are to end.
    pub(in crate::cli) async fn ending(&mut self) {
        while !ends(self.next_to_pass().await) {}
    }

    /// The next one that is to be passed on.
    pub(in crate::cli) async fn next_to_pass(&mut self) -> Signal {
        loop {
            if let Event::Signal(signal) = self.next().await {
                return signal;
            }
        }
    }
}

/// Whether who gets this signal is to end.
pub(super) fn ends(signal: Signal) -> bool {
    [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&signal)
}

/// Waits for the start of a command, and returns with it the signals that came meanwhile: they are the command's. If one of
/// them ends programs and the command does not start soon, nothing is started.
pub(in crate::cli) async fn start_between<T>(
    start: impl Future<Output = Result<T, CliError>>,
    mut next: impl AsyncFnMut() -> Signal,
) -> Result<(T, Vec<Signal>), CliError> {
    let mut start = std::pin::pin!(start);
    let (mut heard, mut end) = (Vec::new(), None);
    loop {
        let too_late = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            started = &mut start => return Ok((started?, heard)),
            () = too_late => return Err(CliError::new(Kind::Interrupted, "interrupted")),
            signal = next() => {
                heard.push(signal);
                if ends(signal) {
                    end.get_or_insert(Instant::now() + GRACE);
                }
            }
        }
    }
}

/// Waits for the end of a command, and passes signals on to it: those that came while it was started, then the next ones.
pub(super) async fn wait_passing_on(
    running: &Running,
    early: Vec<Signal>,
    mut next: impl AsyncFnMut() -> Signal,
) -> Result<Exit, EnterError> {
    for signal in early {
        running.signal(signal).await;
    }
    let mut exit = std::pin::pin!(running.wait());
    loop {
        tokio::select! {
            exit = &mut exit => return exit,
            signal = next() => running.signal(signal).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hear(signals: &mut Vec<Signal>) -> Signal {
        match signals.pop() {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    #[tokio::test]
    async fn signals_during_the_start_are_the_commands() {
        let mut coming = vec![Signal::TERM, Signal::USR1];
        let start = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok("up")
        };
        let (started, heard) = start_between(start, async || hear(&mut coming).await).await.unwrap();
        assert_eq!((started, heard), ("up", vec![Signal::USR1, Signal::TERM]));
    }

    #[tokio::test]
    async fn what_does_not_start_is_given_up() {
        let mut coming = vec![Signal::INT];
        let never = std::future::pending::<Result<(), CliError>>();
        let error = start_between(never, async || hear(&mut coming).await)
            .await
            .unwrap_err();
        assert_eq!(error.kind, Kind::Interrupted);
    }
}
