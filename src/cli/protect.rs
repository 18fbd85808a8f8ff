//! `machinist protect`

use super::complete;
use super::config::change::{self, How};
use super::context::Ctx;
use super::error::CliError;
use super::on_off::OnOff;
use crate::nspawn::edit::Edit;
use crate::ops::config::Wanted;
use crate::ops::protect::KEY;
use crate::unit::OWN_SECTION;
use crate::unit::topic::Topic;

/// Protect machines against being removed or renamed, or no longer
///
/// `remove` and `rename` refuse a protected machine, with --force too. It is a line in a drop-in of the machine's unit, of which machinectl
/// knows nothing: it protects from mistakes, not from root.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist protect web on         Never remove it by mistake
  machinist protect 'ci-*' off     These may be removed again")]
pub(super) struct Args {
    /// Machines, or patterns of image names
    #[arg(required = true, value_name = "NAME", add = complete::images())]
    names: Vec<String>,
    /// Whether they are to be
    #[arg(required = true)]
    state: OnOff,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let (edit, what) = if args.state.is_on() {
        (Edit::set(OWN_SECTION, KEY, "yes".to_owned()), "protect on")
    } else {
        (Edit::remove(OWN_SECTION, KEY, None), "protect off")
    };
    let wanted = Wanted::Edits {
        settings: Vec::new(),
        drop_ins: vec![(Topic::Protect, edit)],
    };
    change::run(
        ctx,
        "protect",
        &args.names,
        what.to_owned(),
        wanted,
        How::dry(args.dry_run),
    )
    .await
}
