//! `machinist config`: the verbs on settings, one file each.

mod add;
mod allow;
mod cat;
pub(super) mod change;
mod check;
mod diff;
mod edit;
pub(super) mod get;
mod set;
mod setting;
mod show;
mod undo;
mod unset;

use super::context::Ctx;
use super::error::CliError;
use crate::machine::MachineName;
use crate::ops::config::files;
use crate::ops::start::find_image;

/// Settings of machines: see, change and check .nspawn files
///
/// The settings of a machine are those of systemd.nspawn(5), in /etc/systemd/nspawn/NAME.nspawn. What is changed there
/// holds from the next start of the machine. A change touches only the lines that it must.
///
/// What .nspawn files cannot say has names without a section, and stands in drop-ins of the machine's unit, in
/// /etc/systemd/system/systemd-nspawn@NAME.service.d/50-machinist-*.conf: restart (when it is started again: no, on-failure,
/// always …), console (interactive, or read-only: see `machinist console`), stop-timeout (how long it may take to stop), slice ('web' for machine-web.slice), description, and
/// before-start, after-start and after-stop (commands that run on the host, see systemd.service(5)). stop-signal is another
/// name of Exec.KillSignal: what the machine's init is sent to power off.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config show web                          What is in force, and where it comes from
  machinist config cat web                           The file as it is
  machinist config set web Exec.Hostname=shop        Change a setting
  machinist config add web Network.Port=tcp:8080:80  Add to a list
  machinist config set web restart=on-failure        Start it again when it fails
  machinist config undo web                          Take the last change back
  machinist config check                             All settings of all machines")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Show(show::Args),
    Cat(cat::Args),
    Get(get::Args),
    Set(set::Args),
    Add(add::Args),
    Unset(unset::Args),
    Edit(edit::Args),
    Diff(diff::Args),
    Undo(undo::Args),
    Check(check::Args),
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    match args.verb {
        Verb::Show(args) => show::run(ctx, args).await,
        Verb::Cat(args) => cat::run(ctx, args).await,
        Verb::Get(args) => get::run(ctx, args).await,
        Verb::Set(args) => set::run(ctx, args).await,
        Verb::Add(args) => add::run(ctx, args).await,
        Verb::Unset(args) => unset::run(ctx, args).await,
        Verb::Edit(args) => edit::run(ctx, args).await,
        Verb::Diff(args) => diff::run(ctx, args).await,
        Verb::Undo(args) => undo::run(ctx, args).await,
        Verb::Check(args) => check::run(ctx, args).await,
    }
}

/// A machine without settings is one, too; machined is asked only where no file tells.
pub(super) async fn find(ctx: &Ctx, name: &MachineName) -> Result<(), CliError> {
    if files::of_machine(name, &ctx.places).is_empty() && files::image(name, &ctx.places).is_none() {
        find_image(ctx.bus().await?, name).await?;
    }
    Ok(())
}
