//! Our own signals while a command runs: they are meant for the command.

use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// What our own signals ask for. What the terminal sends with a key reaches only us: the command has a session of its own.
#[derive(Clone)]
pub(super) enum Event {
    /// To be passed on.
    Signal(Signal),
    /// The terminal has another size.
    Resized,
}

/// Our own signals, from the moment of listening.
pub(super) struct Signals(Vec<(tokio::signal::unix::Signal, Event)>);

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
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

    pub(super) async fn next(&mut self) -> Event {
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

    /// Returns when somebody wants us to end.
    pub(super) async fn interruption(&mut self) {
        while !matches!(
            self.next().await,
            Event::Signal(Signal::INT | Signal::TERM | Signal::HUP | Signal::QUIT)
        ) {}
    }
}
