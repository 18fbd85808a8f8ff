//! `machinist register`

use clap::ValueEnum;

use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use crate::machine::MachineName;
use crate::ops::register::{Request, plan, register};

/// Register a container or virtual machine that something else has started
///
/// By LXC, bubblewrap, unshare or QEMU: systemd-machined then knows it, and list, status, exec, logs, kill, wait, events and
/// machinectl work on it, until it ends. It is not started or stopped anew by this, and has no image or settings.
///
/// Its leader is its first process, by its number on the host: `lsns -t pid` shows it. Where the leader's unit holds nothing
/// else, that is the machine's unit. From any other, such as a session, all its processes are moved into a scope of their own
/// in machine.slice. Refused is what has control groups of its own in no unit of its own: limits and freezing could not
/// reach them. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist register box --leader 4711             A container, by its first process
  machinist register box --leader 4711 --dry-run   See what would be done
  machinist register desktop --class vm --leader 4711  A virtual machine, by that of QEMU")]
pub(super) struct Args {
    /// The name that it is to have
    #[arg(value_name = "NAME")]
    name: MachineName,
    /// Its first process
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    leader: u32,
    /// What it is
    #[arg(long, value_enum, default_value = "container")]
    class: Class,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// What a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Class {
    /// Processes in namespaces of their own
    Container,
    /// A virtual machine
    Vm,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    ctx.need_root("register")?;
    let request = |name: MachineName| Request {
        name,
        leader: args.leader,
        is_vm: args.class == Class::Vm,
    };
    let bus = ctx.bus().await?;
    let names = vec![args.name];
    if args.dry_run {
        return plan_each(ctx, &names, async |name| Ok(plan(bus, request(name)).await?.steps())).await;
    }
    let jobs = ctx.jobs().await?;
    // Half of it is nothing that could be taken back.
    let _busy = ctx.hold();
    each(ctx, "register", names, async |name| {
        let plan = plan(bus, request(name.clone())).await?;
        register(bus, &jobs, &plan).await?;
        let unit = plan.unit();
        let outcome = Outcome::new("registered", format!("registered {name}, in {unit}"));
        Ok(outcome.with("unit", unit).with("leader", args.leader))
    })
    .await
}
