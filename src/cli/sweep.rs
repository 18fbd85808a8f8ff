//! Before a verb that makes or removes images: what a killed one left is swept.

use std::path::Path;

use tokio::runtime::Handle;

use super::clone::is_running;
use super::context::Ctx;
use super::create::check_name;
use super::error::CliError;
use super::rename::check_stopped;
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::enable::{disable_units, enable_units, is_enabled, reload};
use crate::ops::hold_still::{Still, hold_still};
use crate::ops::linked::{Units, units};
use crate::ops::remove::{Systemd, Target, remove};
use crate::ops::stop::forget_failure;
use crate::ops::transaction::{Record, Verb, sweep};
use crate::ops::{clone, quota, rename};
use crate::sys::bus::Bus;
use crate::sys::bus::jobs::Jobs;
use crate::sys::bus::machine1::ImageState;

/// What is done through systemd, for steps that run on a thread of their own.
#[derive(Debug)]
pub(super) struct ThroughSystemd {
    pub(super) bus: Bus,
    pub(super) handle: Handle,
}

impl Systemd for ThroughSystemd {
    fn set_autostart(&self, name: &MachineName, enabled: bool) -> Result<(), OpError> {
        let names = std::slice::from_ref(name);
        let change = async {
            if enabled {
                enable_units(&self.bus, names).await
            } else {
                disable_units(&self.bus, names).await
            }
        };
        self.handle.block_on(change)
    }

    fn forget(&self, name: &MachineName, reload: bool) -> Result<(), OpError> {
        self.handle.block_on(async {
            if reload {
                self::reload(&self.bus).await?;
            }
            forget_failure(&self.bus, &name.unit()).await
        })
    }
}

impl clone::Systemd for ThroughSystemd {
    fn check_free(&self, name: &MachineName) -> Result<(), OpError> {
        self.handle.block_on(check_name(&self.bus, name))
    }

    fn is_running(&self, name: &MachineName) -> Result<bool, OpError> {
        self.handle.block_on(is_running(&self.bus, name))
    }

    fn hold_still(&self, name: &MachineName, image: &Path) -> Result<Still, OpError> {
        self.handle.block_on(async {
            let registered = self.bus.registered(name.as_str()).await?;
            let jobs = Jobs::subscribe(&self.bus).await?;
            hold_still(&self.bus, &jobs, image, &registered).await
        })
    }
}

impl Units for ThroughSystemd {
    fn reload(&self) -> Result<(), OpError> {
        self.handle.block_on(reload(&self.bus))
    }

    fn read_new(&self, units: &[String]) -> Result<(), OpError> {
        self.handle.block_on(units::read_new(&self.bus, units))
    }

    fn start_units(&self, units: &[String]) -> Result<(), OpError> {
        self.handle.block_on(units::start(&self.bus, units))
    }

    fn stop_units(&self, units: &[String]) -> Result<(), OpError> {
        self.handle.block_on(units::stop(&self.bus, units))
    }
}

impl quota::Systemd for ThroughSystemd {
    fn image(&self, name: &MachineName) -> Result<ImageState, OpError> {
        let found = self.handle.block_on(self.bus.find_image_state(name.as_str()))?;
        found.ok_or_else(|| OpError::NoImage { name: name.to_string() })
    }

    fn limit(&self, name: &MachineName, limit: Option<u64>) -> Result<(), OpError> {
        Ok(self.handle.block_on(self.bus.set_image_limit(name.as_str(), limit))?)
    }
}

impl rename::Systemd for ThroughSystemd {
    fn check_free(&self, name: &MachineName) -> Result<(), OpError> {
        self.handle.block_on(check_name(&self.bus, name))
    }

    fn check_stopped(&self, name: &MachineName) -> Result<(), OpError> {
        self.handle.block_on(check_stopped(&self.bus, name))
    }

    fn forget(&self, name: &MachineName, reload: bool) -> Result<(), OpError> {
        Systemd::forget(self, name, reload)
    }
}

/// Sweeps, and says what was swept.
pub(super) async fn run(ctx: &Ctx) -> Result<(), CliError> {
    let (places, cancel, progress) = (ctx.places.clone(), ctx.cancel.clone(), ctx.progress("sweep"));
    let finish = finisher(ctx).await;
    let swept = ctx
        .blocking(move || sweep(&places, &finish, &progress, &cancel))
        .await?;
    for what in &swept {
        ctx.voice
            .status(&format!("swept what an interrupted call left: {what}"));
    }
    Ok(())
}

/// Whether what ran in a staging directory has ended.
async fn is_over(bus: &Bus, record: &Record) -> Result<(), OpError> {
    let name = record.name.clone();
    match &record.unit {
        Some(unit) if !bus.is_unit_over(unit).await? => Err(OpError::Running { name }),
        _ => Ok(()),
    }
}

/// Finishes what was killed in the middle: removes the settings and autostart of a machine that was being removed, and the
/// settings of a clone that was not finished, and takes back or finishes a renaming.
pub(super) async fn finisher(ctx: &Ctx) -> impl Fn(&Record, &Path) -> Result<(), OpError> + Send + 'static {
    let (places, cancel, progress) = (ctx.places.clone(), ctx.cancel.clone(), ctx.progress("sweep"));
    let (bus, handle) = (ctx.bus().await.cloned(), Handle::current());
    move |record, staging| {
        let bus = bus.clone()?;
        let name: MachineName = record.name.parse()?;
        let systemd = ThroughSystemd {
            bus: bus.clone(),
            handle: handle.clone(),
        };
        match record.verb {
            Verb::Clone => return clone::take_back(record, staging, &places, &systemd),
            Verb::Rename => return rename::finish(record, staging, &places, &systemd),
            Verb::Run => return handle.block_on(is_over(&bus, record)),
            _ => {}
        }
        let find_image = || handle.block_on(bus.find_image_path(name.as_str()));
        // Somebody made a machine of that name since.
        if find_image()?.is_some() {
            return Ok(());
        }
        let state = handle.block_on(bus.unit_file_state(&name.unit()))?;
        let target = Target {
            name: name.clone(),
            image: None,
            enabled: is_enabled(&state),
        };
        let still_gone = || match find_image()? {
            None => Ok(()),
            Some(path) => Err(OpError::NotRemovable {
                path: path.into(),
                reason: "it was made since".to_owned(),
            }),
        };
        remove(&target, &places, &systemd, &still_gone, &progress, &cancel).map(drop)
    }
}
