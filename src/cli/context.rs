//! The only place where real backends are made.

use tokio::sync::OnceCell;

use super::error::{CliError, Kind};
use crate::machine::Cancel;
use crate::ops::{OpError, Places};
use crate::output::{Voice, data, progress::Progress};
use crate::sys::agent::Agent;
use crate::sys::bus::jobs::Jobs;
use crate::sys::bus::{Bus, BusError};
use crate::sys::config::{Config, ConfigError};

/// What verbs work with.
#[derive(Debug)]
pub struct Ctx {
    /// How to speak.
    pub voice: Voice,
    /// Where things lie.
    pub places: Places,
    /// Set by Ctrl-C and SIGTERM.
    pub cancel: Cancel,
    /// Whether polkit may ask a person on the terminal.
    ask_password: bool,
    /// A transaction runs: it must end by itself, done or undone.
    busy: std::sync::atomic::AtomicUsize,
    bus: OnceCell<Bus>,
    agent: OnceCell<Option<Agent>>,
}

impl Ctx {
    /// A context for the real system. Nothing is opened before it is used.
    #[must_use]
    pub fn new(voice: Voice, ask_password: bool) -> Self {
        let (bus, agent) = (OnceCell::new(), OnceCell::new());
        Self {
            voice,
            places: Places::default(),
            cancel: Cancel::default(),
            ask_password,
            busy: 0.into(),
            bus,
            agent,
        }
    }

    /// The system bus.
    pub async fn bus(&self) -> Result<&Bus, BusError> {
        self.bus.get_or_try_init(|| Bus::system(self.may_ask())).await
    }

    /// systemd's jobs. Before a verb that changes something: polkit gets its agent here.
    pub async fn jobs(&self) -> Result<Jobs, CliError> {
        // What is wrong with machinist.conf is said before anything is changed.
        self.config()?;
        self.authorize().await;
        Ok(Jobs::subscribe(self.bus().await?).await?)
    }

    /// Starts the agent that polkit asks through, where there is a person to ask.
    pub async fn authorize(&self) {
        self.agent
            .get_or_init(|| async {
                if !self.may_ask() {
                    return None;
                }
                tokio::task::spawn_blocking(Agent::start).await.ok().flatten()
            })
            .await;
    }

    fn may_ask(&self) -> bool {
        self.ask_password && !is_root() && Agent::has_terminal()
    }

    /// machinist.conf.
    pub fn config(&self) -> Result<Config, CliError> {
        Config::load().map_err(|error| {
            let hint = match &error {
                ConfigError::UnknownKey { .. } => {
                    let keys: Vec<_> = crate::sys::config::KEYS
                        .iter()
                        .map(|(s, k)| format!("[{s}] {k}="))
                        .collect();
                    format!("the keys are {}", keys.join(", "))
                }
                _ => "mend the file, or remove it: every setting has a default".to_owned(),
            };
            CliError::new(Kind::Failed, error.to_string()).hint(hint)
        })
    }

    /// Where the progress of work on a machine is shown.
    #[must_use]
    pub fn progress(&self, subject: &str) -> Progress {
        Progress::new(self.voice, subject)
    }

    /// Refuses a verb that writes files, for everybody but root.
    pub fn need_root(&self, verb: &'static str) -> Result<(), CliError> {
        if is_root() {
            Ok(())
        } else {
            Err(OpError::NeedsRoot { verb }.into())
        }
    }

    /// Shows the steps of a dry run.
    pub fn show_plan(&self, steps: &[String]) -> Result<(), CliError> {
        if self.voice.json {
            self.voice.json(&serde_json::json!({ "steps": steps }))?;
        } else {
            for step in steps {
                data(&format!("{}\n", crate::machine::text::printable(step)))?;
            }
        }
        Ok(())
    }

    /// Makes interruptions wait for as long as the value lives: whoever holds it hears them by itself.
    #[must_use]
    pub fn hold(&self) -> Busy<'_> {
        self.busy.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Busy(&self.busy)
    }

    /// Whether an interruption has to wait for a transaction, which sees `cancel` by itself.
    #[must_use]
    pub fn must_finish(&self) -> bool {
        self.busy.load(std::sync::atomic::Ordering::SeqCst) > 0
    }

    /// Reads what a person or another program may never give, on a thread of its own: Ctrl-C ends the verb meanwhile.
    pub async fn wait_for_user<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, CliError> + Send + 'static,
    ) -> Result<T, CliError> {
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|panic| Err(internal_error(&panic)))
    }

    /// Runs blocking work on a thread that may take its time, while the bus stays served.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, CliError> {
        let busy = self.hold();
        let result = tokio::task::spawn_blocking(work).await;
        drop(busy);
        match result {
            Ok(result) => Ok(result?),
            Err(panic) => Err(internal_error(&panic)),
        }
    }
}

pub(super) fn internal_error(panic: &tokio::task::JoinError) -> CliError {
    CliError::new(Kind::Failed, format!("internal error: {panic}")).hint("this is a bug in machinist: please report it")
}

/// Keeps an interruption from dropping a verb in the middle: see [`Ctx::hold`].
#[derive(Debug)]
pub struct Busy<'a>(&'a std::sync::atomic::AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Whether we may do everything.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
