//! Before a verb that makes or removes images: what a killed one left is swept.

use tokio::runtime::Handle;

use super::context::Ctx;
use super::error::CliError;
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::enable::{disable_units, enable_units, is_enabled, reload};
use crate::ops::remove::{Systemd, Target, remove};
use crate::ops::stop::forget_failure;
use crate::ops::transaction::sweep;
use crate::sys::bus::Bus;

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

/// Removes the settings and autostart of a machine whose removal was killed in the middle.
pub(super) async fn finisher(ctx: &Ctx) -> impl Fn(&str) -> Result<(), OpError> + Send + 'static {
    let (places, cancel, progress) = (ctx.places.clone(), ctx.cancel.clone(), ctx.progress("sweep"));
    let (bus, handle) = (ctx.bus().await.cloned(), Handle::current());
    move |name| {
        let bus = bus.clone()?;
        let name: MachineName = name.parse()?;
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
        let (bus, handle) = (bus.clone(), handle.clone());
        let systemd = ThroughSystemd { bus, handle };
        remove(&target, &places, &systemd, &still_gone, &progress, &cancel).map(drop)
    }
}
