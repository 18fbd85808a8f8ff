//! Waiting for systemd's jobs by their `JobRemoved` signal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use tokio::sync::Notify;

use super::{Bus, BusError, classify, systemd1};

/// Collects `JobRemoved` from the moment of subscription: a job that ends before anybody waits is not missed.
///
/// One collector serves any number of concurrent waiters on the same thread.
#[derive(Debug)]
pub struct Jobs {
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
        // Without a subscriber systemd sends no signals at all. A second subscription is refused: harmless.
        match manager.subscribe().await {
            Ok(()) => {}
            Err(zbus::Error::MethodError(name, ..)) if name.as_str().ends_with("AlreadySubscribed") => {}
            Err(error) => return Err(failed(error)),
        }
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
        Ok(Self { finished, collector })
    }

    /// Waits until the job behind `path` is gone and returns its result.
    pub async fn wait(&self, path: &str) -> String {
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
