//! Waiting for systemd's jobs by their `JobRemoved` signal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::Notify;

use super::{Bus, BusError, classify, systemd1};

/// How long a signal is waited for before systemd is asked whether the job is still there.
const CHECK: Duration = Duration::from_secs(5);
/// How much later than the end of its job a signal may come.
const LATE: Duration = Duration::from_secs(1);
/// What jobs are, on the bus.
const JOB: &str = "org.freedesktop.systemd1.Job";

/// What a job is to make of its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Its processes run.
    Up,
    /// They do not.
    Down,
}

/// Collects `JobRemoved` from the moment of subscription: a job that ends before anybody waits is not missed.
///
/// One collector serves any number of concurrent waiters on the same thread.
#[derive(Debug)]
pub struct Jobs {
    bus: Bus,
    finished: Arc<Finished>,
    collector: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Finished {
    /// Job object path → result: "done", "failed", "canceled", "timeout", "dependency", "skipped".
    results: Mutex<HashMap<String, String>>,
    arrived: Notify,
}

impl Jobs {
    /// Subscribes. To be called before the first job is queued.
    pub async fn subscribe(bus: &Bus) -> Result<Self, BusError> {
        let failed = |error: zbus::Error| classify(&error, systemd1::SERVICE, "subscribe to systemd's jobs", "");
        let manager = bus.manager().await?;
        let mut removed = manager.receive_job_removed().await.map_err(failed)?;
        bus.subscribe().await?;
        let finished = Arc::new(Finished::default());
        let sink = Arc::clone(&finished);
        let collector = tokio::spawn(async move {
            while let Some(signal) = removed.next().await {
                let Ok(args) = signal.args() else { continue };
                let mut results = sink.results.lock().unwrap_or_else(PoisonError::into_inner);
                results.insert(args.job.as_str().to_owned(), args.result.clone());
                drop(results);
                sink.arrived.notify_waiters();
            }
        });
        Ok(Self {
            bus: bus.clone(),
            finished,
            collector,
        })
    }

    /// Waits until the job behind `path` is gone and returns its result.
    ///
    /// The signal does not come if systemd lost its connection to the bus meanwhile: then what the job was to make of `unit`
    /// tells.
    pub async fn wait(&self, path: &str, unit: &str, goal: Goal) -> String {
        loop {
            match tokio::time::timeout(CHECK, self.signalled(path)).await {
                Ok(result) => return result,
                Err(_) if self.is_there(path).await => {}
                // It may have gone just now.
                Err(_) => {
                    let late = tokio::time::timeout(LATE, self.signalled(path)).await;
                    if let Some(result) = late.ok().or(self.made(unit, goal).await) {
                        return result;
                    }
                }
            }
        }
    }

    /// Whether systemd still has a job; also if it does not answer.
    async fn is_there(&self, path: &str) -> bool {
        let service = (systemd1::NAME, systemd1::SERVICE);
        let asked = self.bus.some_properties(service, path, JOB, &["State"], path).await;
        !matches!(asked, Err(BusError::Failed { name, .. }) if name.ends_with(".UnknownObject"))
    }

    /// What a job has made of a unit that went without a signal; `None` if systemd does not answer.
    async fn made(&self, unit: &str, goal: Goal) -> Option<String> {
        // It has forgotten who is to be told.
        let _ = self.bus.subscribe().await;
        let is_up = self.bus.is_unit_up(unit).await.ok()?;
        let result = if is_up == (goal == Goal::Up) { "done" } else { "failed" };
        Some(result.to_owned())
    }

    /// Waits for the signal.
    async fn signalled(&self, path: &str) -> String {
        loop {
            // Registered before the look: a signal in between wakes it.
            let arrived = self.finished.arrived.notified();
            let mut arrived = std::pin::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(result) = self
                .finished
                .results
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(path)
            {
                return result;
            }
            arrived.await;
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.collector.abort();
    }
}
