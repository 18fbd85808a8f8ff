//! `machinist login`

use super::attach::{Lasts, attach};
use super::complete;
use super::context::Ctx;
use super::error::CliError;
use crate::machine::MachineName;
use crate::sys::bus::Bus;

/// Log in to a running machine
///
/// Shows the machine's own login prompt, which asks for a user and a password. That needs a machine with systemd and D-Bus.
/// `machinist shell` asks for neither. Press ^] three times within a second to leave. Without root polkit decides.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist login web          The login prompt of web
  machinist shell alice@web    Alice's shell, without a password")]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME", add = complete::running())]
    name: MachineName,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let name = args.name.as_str();
    let open = async |bus: &Bus| bus.open_machine_login(name).await;
    // After a session the machine asks for the next login.
    attach(ctx, "login", &args.name, Lasts::Always, open).await
}
