//! `machinist shell`

use std::ffi::OsString;

use super::attach::{Lasts, NO_JSON, attach};
use super::complete;
use super::context::Ctx;
use super::error::CliError;
use super::exec::shell::{Session, run_session};
use super::exec::{inherited, variable};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::sys::bus::Bus;

/// Open a shell in a running machine
///
/// A session as after a login: systemd-machined has the machine's own systemd open it, with PAM and the user's shell. That
/// needs a machine with systemd and D-Bus; in any other, `machinist exec -t NAME -- sh` gives a shell without a session.
///
/// With CMD that is run instead, on a terminal, and the exit status is its own: `exec` is the tool for scripts.
/// A shell is left with exit or Ctrl-D, or by pressing ^] three times within a second, which ends what runs in it.
/// Without root polkit decides.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist shell web                   A root shell
  machinist shell alice@web             As another user of the machine
  machinist shell web passwd root       One command, with a terminal")]
pub(super) struct Args {
    /// The machine, and the user in it; root if none is named
    #[arg(value_name = "[USER@]NAME", add = complete::running())]
    target: String,
    /// A command and its arguments, instead of the user's shell
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
    /// Set a variable in the session
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(OsString, OsString)>,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let (user, name) = args.target.rsplit_once('@').unwrap_or(("root", &args.target));
    if user.is_empty() {
        return Err(CliError::usage("there is no user before '@'"));
    }
    let name: MachineName = name.parse().map_err(OpError::from)?;
    if !args.command.is_empty() {
        if ctx.voice.json {
            return Err(CliError::usage(NO_JSON));
        }
        let session = Session {
            verb: "shell",
            user,
            cwd: None,
            env: &args.env,
            command: &args.command,
        };
        let _busy = ctx.hold();
        return run_session(ctx, &session, &name).await;
    }
    let mut env = Vec::new();
    for (key, value) in inherited(true).chain(args.env) {
        let text = |word: OsString| {
            word.into_string()
                .map_err(|_| CliError::usage("variables have to be UTF-8"))
        };
        env.push(format!("{}={}", text(key)?, text(value)?));
    }
    let open = async |bus: &Bus| bus.open_machine_shell(name.as_str(), user, "", &[], &env).await;
    attach(ctx, "shell", &name, Lasts::Once, open).await
}
