//! Before a verb that makes or removes images: what a killed one left is swept.

use tokio::runtime::Handle;

use super::context::Ctx;
use super::error::CliError;
use crate::machine::MachineName;
use crate::ops::enable::{disable_units, enable_units, is_enabled};
use crate::ops::remove::{Autostart, Target, remove};
use crate::ops::transaction::sweep;
use crate::ops::{OpError, Places};
use crate::sys::bus::Bus;

/// Autostart through systemd, for steps that run on a thread of their own.
#[derive(Debug)]
pub(super) struct ThroughSystemd {
    pub(super) bus: Bus,
    pub(super) handle: Handle,
}

impl Autostart for ThroughSystemd {
    fn set(&self, name: &MachineName, enabled: bool) -> Result<(), OpError> {
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
}

/// Sweeps, and says what was swept.
pub(super) async fn run(ctx: &Ctx) -> Result<(), CliError> {
    let (places, cancel, progress) = (ctx.places.clone(), ctx.cancel.clone(), ctx.progress("sweep"));
    let swept = ctx.blocking(move || sweep(&places, &progress, &cancel)).await?;
    for what in &swept.what {
        ctx.voice
            .status(&format!("swept what an interrupted call left: {what}"));
    }
    finish_removals(ctx, swept.removed).await
}

/// Removes the settings and autostart of machines whose removal was killed in the middle.
pub(super) async fn finish_removals(ctx: &Ctx, names: Vec<String>) -> Result<(), CliError> {
    for name in names.iter().filter_map(|name| name.parse::<MachineName>().ok()) {
        // Somebody may have made a machine of that name since.
        if ctx.places.image(&name).exists() {
            continue;
        }
        let bus = ctx.bus().await?.clone();
        let enabled = is_enabled(&bus.unit_file_state(&name.unit()).await.unwrap_or_default());
        let target = Target {
            name,
            image: None,
            enabled,
        };
        let autostart = ThroughSystemd {
            bus,
            handle: Handle::current(),
        };
        let (places, cancel): (Places, _) = (ctx.places.clone(), ctx.cancel.clone());
        let progress = ctx.progress(target.name.as_str());
        ctx.blocking(move || remove(&target, &places, &autostart, &|| Ok(()), &progress, &cancel))
            .await?;
    }
    Ok(())
}
