//! `create NAME machine:OTHER`: what `clone --full` does.

use super::{Args, Made, begin, check_name};
use crate::cli::clone::{self, is_running};
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::cli::sweep;
use crate::machine::MachineName;
use crate::ops::clone::plan;
use crate::sys::journal::audit;

/// A copy has the settings of the original: options that shape those of a new machine are not for it.
pub(super) fn check(args: &Args, source: &MachineName) -> Result<(), CliError> {
    match args.guest.given() {
        Some(option) => {
            let message = format!("{option} is not for 'machine:{source}': the copy has its settings");
            Err(CliError::usage(message).hint("change them afterwards with `machinist config set`"))
        }
        None => Ok(()),
    }
}

pub(super) async fn run(ctx: &Ctx, args: &Args, name: MachineName, source: MachineName) -> Result<u8, CliError> {
    check(args, &source)?;
    if source == name {
        return Err(CliError::usage(format!("machine '{name}' cannot be made of itself")));
    }
    let bus = ctx.bus().await?.clone();
    let request = clone::request(&bus, source.clone(), name.clone()).await?;
    check_name(&bus, &name).await?;
    if request.is_disk_image() {
        let message = format!("machine '{source}' is a disk image, which is copied with its identity only");
        return Err(CliError::from(crate::ops::OpError::Option {
            message,
            hint: format!("say so with `machinist clone {source} {name} --keep-identity`"),
        }));
    }
    if args.dry_run {
        let running = is_running(&bus, &source).await?;
        let (steps, warnings) = plan(&request, running, &ctx.places)?;
        for warning in warnings {
            ctx.voice.warning(&warning);
        }
        return super::show_plan(ctx, args, &name, steps);
    }
    ctx.need_root("create")?;
    sweep::run(ctx).await?;
    let result = clone::make(ctx, &bus, request).await;
    let outcome = result.as_ref().map(|_| ()).map_err(|error| error.message.as_str());
    audit(name.as_str(), "create", outcome);
    let path = result?.path;
    begin(ctx, &bus, args, Made { name, path }).await
}
